#!/usr/bin/env python
"""Run a study so that it outlives this terminal: the Snakemake controller as a job of its own.

On a SLURM cluster the controller is a small SLURM job that is requeued at its time limit; on one
machine it is a process that this terminal does not own. Either way it clears up after an earlier
controller that died, and starts Snakemake again when that waits for jobs SLURM has forgotten.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

from transfer_influence.config.settings import read_yaml
from transfer_influence.config.study import check_study
from transfer_influence.errors import UserError
from transfer_influence.operation import launching, slurm
from transfer_influence.operation.census import census
from transfer_influence.operation.controller import Controller, Leftovers, log_of
from transfer_influence.operation.printing import progress_table

CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = parser().parse_args()
    try:
        study = check_study(read_yaml(arguments.study), str(arguments.study))
        results = (study.results / study.study).absolute()
        if arguments.status:
            print_status(study.study, results)
            print(progress_table(census(study), time.time()))
        elif arguments.cancel:
            for line in launching.cancel(study.study, results, Path.cwd()):
                print(line)
        else:
            start(arguments, study.study, results)
    except UserError as error:
        sys.exit(f"launch.py: {error}")


def start(arguments: argparse.Namespace, study: str, results: Path) -> None:
    """Check the study, start its controller unless it has one, and follow it if asked."""
    log = log_of(results)
    told = log.stat().st_size if log.exists() else 0
    cluster = arguments.cluster or launching.this_cluster()
    profile = arguments.profile or CHECKOUT / "profiles" / cluster
    defaults = launching.profile_defaults(profile)
    snakemake = [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(CHECKOUT / "Snakefile")),
        *("--configfile", str(arguments.study), "--workflow-profile", str(profile)),
        *arguments.snakemake,
    ]
    at_work = launching.running(results)
    if at_work and not (arguments.follow or arguments.dry_run):
        described = " and ".join(f"the {role} is {owner}" for role, owner in at_work.items())
        raise UserError(f"the study is being run already: {described}; see --status, --follow.")
    if not at_work or arguments.dry_run:
        # A mistake in the config is better said here than in the log of a job.
        quiet = [] if arguments.dry_run else ["--quiet", "all"]
        if subprocess.run([*snakemake, "--dry-run", *quiet]).returncode != 0:
            raise UserError("Snakemake cannot plan this study; its reasons are above.")
        if arguments.dry_run:
            return
        controller = Controller(
            snakemake=snakemake,
            study=study,
            results=results,
            folder=Path.cwd(),
            leftovers=arguments.leftovers,
            patience=arguments.patience,
            gpus=os.getenv("CUDA_VISIBLE_DEVICES"),
        )
        queue = {
            "partition": arguments.partition or defaults.get("slurm_partition"),
            "account": arguments.account or defaults.get("slurm_account"),
        }
        place = launching.Place(
            cluster,
            {name: value for name, value in queue.items() if value},
            round(arguments.hours * 60),
            arguments.memory_gb,
        )
        print(f"the controller is {launching.submit(controller, place)}; its log is {log}")
    if arguments.follow:
        launching.follow(study, results, Path.cwd(), told)


def print_status(study: str, results: Path) -> None:
    """Print who is running a study, and its jobs in the queue."""
    for role, owner in launching.running(results).items():
        print(f"the {role} is {owner}")
    if slurm.is_there():
        jobs = slurm.controller_jobs(study, Path.cwd()) + slurm.training_jobs(study, Path.cwd())
        print(f"{len(jobs)} job(s) in the queue")
        for job in jobs:
            print(f"    {job}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Call it in the folder that you would call snakemake in. What stands after -- goes "
        "to Snakemake: scripts/launch.py config/mine.yaml -- --jobs 200",
    )
    parser.add_argument("study", type=Path, help="the study's file, such as config/demo.yaml")
    what = parser.add_argument_group("what to do, if not to start").add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show what would run, start nothing")
    what.add_argument("--status", action="store_true", help="say who runs, and how far it is")
    what.add_argument("--cancel", action="store_true", help="stop the controller and all jobs")
    parser.add_argument(
        "--follow", action="store_true", help="print the controller's log until the study is over"
    )
    how = parser.add_argument_group("how to start")
    how.add_argument(
        "--cluster",
        choices=get_args(launching.Cluster),
        help="where the controller runs (default: slurm where there is sbatch, else local)",
    )
    how.add_argument(
        "--profile", type=Path, help="Snakemake profile (default: the checkout's profiles/CLUSTER)"
    )
    how.add_argument("--partition", help="for the controller (default: the profile's)")
    how.add_argument("--account", help="for the controller (default: the profile's)")
    how.add_argument(
        "--hours",
        type=float,
        default=24,
        help="time limit of the controller, after which it is requeued (default: %(default)s)",
    )
    how.add_argument(
        "--memory-gb", type=float, default=4, help="for the controller (default: %(default)s)"
    )
    how.add_argument(
        "--leftovers",
        choices=get_args(Leftovers),
        default="wait",
        help="what to do with running jobs of an earlier controller (default: %(default)s)",
    )
    how.add_argument(
        "--patience",
        type=float,
        default=900,
        help="seconds with no job in the queue and no word from Snakemake until it is taken to "
        "hang (default: %(default)s)",
    )
    parser.add_argument("snakemake", nargs="*", help="after --: further arguments for Snakemake")
    return parser


if __name__ == "__main__":
    main()
