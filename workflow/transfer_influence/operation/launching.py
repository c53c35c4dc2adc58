"""Start a study's controller so that it outlives this terminal; look at it, follow it, stop it."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import submitit

from transfer_influence.claims import Owner
from transfer_influence.config.settings import read_yaml
from transfer_influence.errors import UserError
from transfer_influence.operation import slurm
from transfer_influence.operation.controller import Controller, log_of
from transfer_influence.operation.presence import Role, claims_on

Cluster = Literal["slurm", "local"]
POLL = 1.0  # seconds between two looks at a log
ASK = 30.0  # seconds between two questions to SLURM about a controller that is followed
YEAR = 365 * 24 * 60  # minutes
SIGNAL_BEFORE = 120  # seconds before its time limit at which a controller is told to stop


@dataclass(frozen=True)
class Place:
    """Where and with what a controller runs.

    Attributes:
        cluster: `slurm`, or this machine.
        queue: partition and account in SLURM, where not the defaults of cluster and user.
        minutes: time limit; the controller is then requeued.
        memory_gb: of a controller in SLURM.
    """

    cluster: Cluster
    queue: dict[str, str]
    minutes: int
    memory_gb: float


def this_cluster() -> Cluster:
    """Return `slurm` where jobs can be submitted, else `local`."""
    return "slurm" if shutil.which("sbatch") else "local"


def read_profile(folder: Path) -> dict[str, Any]:
    """Return the settings of a Snakemake profile.

    Raises:
        UserError: there is no such profile, or it is no YAML.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--profile: {path} does not exist; name a folder that holds one.")
    return read_yaml(path)


def check_plan(snakemake: list[str]) -> None:
    """Let Snakemake plan a study, as a mistake is better said here than in the log of a job.

    Raises:
        UserError: it cannot.
    """
    planned = subprocess.run([*snakemake, "--dry-run"], capture_output=True, text=True, check=False)
    if planned.returncode != 0:
        raise UserError(f"Snakemake cannot plan this study:\n{planned.stdout}{planned.stderr}")


def start(controller: Controller, place: Place) -> str:
    """Start a controller through submitit; return what to call it.

    Raises:
        UserError: the study is being run already; Snakemake cannot plan it; SLURM refuses the job.
    """
    for role, owner in running(controller.results).items():
        raise UserError(f"the study is being run already, the {role} is {owner}; see --status.")
    if is_controlled(controller):
        raise UserError("a controller of the study is in the queue already; see --status.")
    check_plan(controller.snakemake)
    folder = controller.results / "launch" / "submitit"
    try:
        if place.cluster == "slurm":
            executor = submitit.SlurmExecutor(folder, max_num_timeout=10_000)
            executor.update_parameters(
                job_name=slurm.controller_name(controller.study),
                time=place.minutes,
                mem=f"{round(place.memory_gb * 1024)}MB",
                cpus_per_task=1,
                signal_delay_s=SIGNAL_BEFORE,
                stderr_to_stdout=True,
                additional_parameters={"requeue": True, "comment": slurm.CONTROLLER, **place.queue},
            )
            return f"SLURM job {executor.submit(controller).job_id}"
        process = in_new_session(lambda: submit_locally(controller, folder))
        while psutil.pid_exists(int(process)) and not running(controller.results):
            time.sleep(POLL)  # until it can be seen, or is over
        return f"process {process}"
    except (subprocess.SubprocessError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM refuses the controller: {' '.join(str(error).split())}") from None


def submit_locally(controller: Controller, folder: Path) -> str:
    """Start a controller on this machine; return its process number."""
    executor = submitit.LocalExecutor(folder, max_num_timeout=10_000)
    executor.update_parameters(timeout_min=YEAR, stderr_to_stdout=True)
    return executor.submit(controller).job_id


def in_new_session(call: Callable[[], str]) -> str:
    """Return what a function returns that is called where no terminal's end is noticed.

    What it starts gets no Ctrl-C and no hang-up of this terminal, and none of its files.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(nowhere, standard)
            os.write(writing, call().encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise UserError("the controller could not be started; run scripts/launch.py --dry-run.")
    return said


def running(results: Path) -> dict[Role, Owner]:
    """Return who is running a study, by role; empty if nobody is.

    For those on other machines this takes up to a heartbeat, or more if they are dead.
    """
    claims = claims_on(results)
    holders = {role: claims.holder(role) for role in get_args(Role)}
    return {role: holder for role, holder in holders.items() if holder and claims.shows_life(role)}


def queue(controller: Controller) -> list[slurm.QueuedJob]:
    """Return the controllers and the training jobs of a study in SLURM's queue.

    Raises:
        UserError: SLURM does not answer.
    """
    if not controller.asks_slurm:
        return []
    try:
        return slurm.study_jobs(controller.study, controller.folder)
    except (subprocess.SubprocessError, OSError) as error:
        raise UserError(f"SLURM does not answer ({error}); try again later.") from None


def status(controller: Controller) -> Iterator[str]:
    """Yield a line for each that runs a study, and for each of its jobs in the queue.

    Raises:
        UserError: SLURM does not answer.
    """
    yield from (f"the {role} is {owner}" for role, owner in running(controller.results).items())
    yield from (f"in the queue: {job}" for job in queue(controller))


def cancel(controller: Controller) -> Iterator[str]:
    """Stop the controller of a study and all its jobs; yield a line for each.

    Finished models are kept: a later start goes on with the others.

    Raises:
        UserError: SLURM does not answer; the controller is on another machine, out of reach.
    """
    jobs = queue(controller)
    in_slurm = any(job.name == slurm.controller_name(controller.study) for job in jobs)
    for role, owner in {} if in_slurm else running(controller.results).items():
        if owner.is_dead() is None:
            raise UserError(f"the {role} is {owner}; call scripts/launch.py --cancel there.")
        kill_tree(owner.process)
        yield f"stopped the {role}, {owner}"
    told: set[str] = set()
    # In rounds, as a controller in SLURM may submit jobs until its own end.
    while jobs := queue(controller):
        slurm.cancel(jobs)
        yield from (f"cancelled {job}" for job in jobs if job.number not in told)
        told |= {job.number for job in jobs}
        time.sleep(POLL)


def kill_tree(process: int) -> None:
    """End a process and all that it started, which by design loses one model a job at most."""
    try:
        root = psutil.Process(process)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in tree:
        member.kill()
    psutil.wait_procs(tree, timeout=10)


def is_controlled(controller: Controller) -> bool:
    """Tell whether a study has a controller, waiting or at work.

    Raises:
        UserError: SLURM does not answer.
    """
    name = slurm.controller_name(controller.study)
    waiting = any(job.name == name for job in queue(controller))
    return waiting or "controller" in running(controller.results)


def follow(controller: Controller, told: int) -> None:
    """Print the controller's log as it grows, until the controller has ended.

    Args:
        controller: of the study.
        told: bytes of the log to skip.
    """
    path = log_of(controller.results)
    asked, over = -ASK, False
    while not over:
        if time.monotonic() - asked > (ASK if controller.asks_slurm else POLL):
            with contextlib.suppress(UserError):  # no answer is no end
                over = not is_controlled(controller)  # before the last look at the log
            asked = time.monotonic()
        if path.exists():
            with path.open("rb") as log:
                log.seek(told)
                text = log.read()
            told += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()
        time.sleep(POLL)
