#!/usr/bin/env python
"""Run a study so that it outlives this terminal: the Snakemake controller as a job of its own.

On a SLURM cluster the controller is a small SLURM job that is requeued at its time limit; on one
machine it is a process that this terminal does not own. Either way it clears up after an earlier
controller that died, and starts Snakemake again when that waits for jobs SLURM has forgotten.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from transfer_influence.config.study import read_study
from transfer_influence.errors import UserError
from transfer_influence.operation import launching
from transfer_influence.operation.census import census
from transfer_influence.operation.controller import Controller, Leftovers, log_of
from transfer_influence.operation.growth import Growth
from transfer_influence.operation.printing import progress_table

SHORTEST = 5  # minutes that a controller is given at least
CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> None:
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments, for_snakemake = parser().parse_args(given[:end]), given[end + 1 :]
    try:
        study = read_study(arguments.study)
        growth = growth_of(arguments)
        if growth and not (arguments.status or arguments.cancel):
            growth.start()
        if growth and growth.file.exists():
            arguments.study.append(growth.file)
            study = read_study(arguments.study)
        cluster = arguments.cluster or launching.this_cluster()
        profile = (arguments.profile or CHECKOUT / "profiles" / cluster).resolve()
        settings = launching.read_profile(profile)
        controller = Controller(
            snakemake=[
                *(sys.executable, "-m", "snakemake", "--snakefile", str(CHECKOUT / "Snakefile")),
                *("--configfile", *map(str, arguments.study)),
                *("--workflow-profile", str(profile), *for_snakemake),
            ],
            study=study.study,
            results=study.folder.absolute(),
            folder=Path.cwd(),
            asks_slurm=settings.get("executor") == "slurm",
            leftovers=arguments.leftovers,
            patience=arguments.patience,
            gpus=os.getenv("CUDA_VISIBLE_DEVICES"),
            growth=growth,
        )
        if arguments.dry_run:
            os.execv(sys.executable, [*controller.snakemake, "--dry-run"])
        elif arguments.status:
            print_lines(launching.status(controller))
            print(progress_table(census(study), time.time()))
        elif arguments.cancel:
            print_lines(launching.cancel(controller))
        else:
            told = size_of(log_of(controller.results))
            if not (arguments.follow and launching.is_controlled(controller)):
                minutes = max(SHORTEST, round(arguments.hours * 60))
                queue = queue_of(arguments, settings)
                place = launching.Place(cluster, queue, minutes, arguments.memory_gb)
                print(f"the controller is {launching.start(controller, place)}")
                print(f"its log is {log_of(controller.results)}")
            if arguments.follow:
                launching.follow(controller, told)
    except UserError as error:
        sys.exit(f"launch.py: {error}")


def growth_of(arguments: argparse.Namespace) -> Growth | None:
    """Return how far the study is to grow; None if it is not to.

    Raises:
        UserError: only one of the two options is given.
    """
    goal, most = arguments.until_reliability, arguments.at_most
    if goal is None and most is None:
        return None
    if goal is None or most is None:
        raise UserError("--until-reliability and --at-most go together; give both.")
    return Growth([path.absolute() for path in arguments.study], Path.cwd(), goal, most)


def size_of(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def queue_of(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, str]:
    """Return the controller's partition and account: as asked for, else those of the profile."""
    defaults = settings.get("default-resources") or {}
    queue = {
        "partition": arguments.partition or defaults.get("slurm_partition"),
        "account": arguments.account or defaults.get("slurm_account"),
    }
    return {name: value for name, value in queue.items() if value}


def print_lines(lines: Iterable[str]) -> None:
    """Print lines as they come."""
    for line in lines:
        print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Call it in the folder that you would call snakemake in. What stands after -- goes "
        "to Snakemake: scripts/launch.py config/mine.yaml -- --jobs 200",
    )
    parser.add_argument(
        "study", type=Path, nargs="+", help="the study's file, such as config/demo.yaml, or files"
    )
    what = parser.add_argument_group("what to do, if not to start").add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="show what would run, start nothing")
    what.add_argument("--status", action="store_true", help="say who runs, and how far it is")
    what.add_argument("--cancel", action="store_true", help="stop the controller and all jobs")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="start unless it runs already, then print the controller's log until it ends",
    )
    grow = parser.add_argument_group("how many models, if not those of the study's file")
    grow.add_argument(
        "--until-reliability",
        type=float,
        metavar="R",
        help="train more models until the lower end of every 95 %% interval of the reliability is "
        "R, such as 0.9, and finish the study with these",
    )
    grow.add_argument("--at-most", type=int, metavar="N", help="so many models at most")
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
    return parser


if __name__ == "__main__":
    main()
