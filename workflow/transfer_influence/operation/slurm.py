"""The jobs of a study in SLURM's queue."""

import contextlib
import getpass
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEPARATOR = "\x1f"  # in no name, folder or comment
CONTROLLER = "controller"  # what a controller's job does, in its comment
# Number, state, name, folder, why it waits, comment.
FORMAT = SEPARATOR.join(("%i", "%T", "%j", "%Z", "%r", "%k"))
NAME_LENGTH = 50  # of a job-name prefix, at most, by Snakemake's SLURM plugin


def name_prefix(study: str) -> str:
    """Return the prefix of the names of a study's jobs; Snakemake adds an underscore and a UUID."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", study)[:NAME_LENGTH]


def name_jobs(study: str, executor: Any) -> None:
    """Let the names of a study's jobs in SLURM's queue begin with its name; before any job.

    Snakemake's plugin has a setting for it, but reads it before a Snakefile can say a word.

    Args:
        study: name of the study.
        executor: Snakemake's, of any kind.
    """
    if hasattr(executor, "run_uuid"):
        executor.run_uuid = f"{name_prefix(study)}_{executor.run_uuid}"


def controller_name(study: str) -> str:
    """Return the name of the jobs that control a study."""
    return f"{name_prefix(study)}-{CONTROLLER}"


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue.

    Attributes:
        number: of the job.
        state: in SLURM's words.
        name: of the job.
        reason: why it waits, in SLURM's words; "None" if it does not.
        work: what it does.
    """

    number: str
    state: str
    name: str
    reason: str
    work: str

    def __str__(self) -> str:
        reason = "" if self.reason == "None" else f" ({self.reason})"
        return f"{self.number} {self.state}{reason} {self.work}"

    @property
    def has_started(self) -> bool:
        """Whether cancelling it would lose anything."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def training_jobs(study: str, folder: Path) -> list[QueuedJob]:
    """Return the jobs that any Snakemake in `folder` submitted for a study and that are not over.

    Raises:
        CalledProcessError: SLURM does not answer.
    """
    return [job for job in study_jobs(study, folder) if job.name != controller_name(study)]


def study_jobs(study: str, folder: Path) -> list[QueuedJob]:
    """Return the training jobs and the controllers of a study that are not over.

    Raises:
        CalledProcessError: SLURM does not answer.
    """
    # With the UUID, as another study's name may begin with this one's.
    uuid = r"_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    name = re.compile(re.escape(name_prefix(study)) + rf"({uuid}|-{CONTROLLER})")
    listed = subprocess.run(
        ["squeue", "--noheader", "--user", getpass.getuser(), "--format", FORMAT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    rows = [line.split(SEPARATOR) for line in listed.splitlines()]
    return [
        QueuedJob(number, state, called, reason, work.replace("_wildcards_", " "))
        for number, state, called, where, reason, work in (row for row in rows if len(row) == 6)
        if name.fullmatch(called) and Path(where).resolve() == folder.resolve()
    ]


def cancel(jobs: list[QueuedJob]) -> None:
    """Cancel jobs; those that are over are no error, and a SLURM that does not answer neither."""
    if jobs:
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            numbers = [job.number for job in jobs]
            subprocess.run(["scancel", *numbers], capture_output=True, check=False, timeout=60)


def is_of_a_job(variable: str) -> bool:
    """Tell whether an environment variable describes the SLURM job that this process is in.

    The jobs that are submitted from it would take that for orders.
    """
    kept = ("SLURM_CONF", "SLURM_JWT")  # they lead to the cluster
    return (
        "SLURM_JOB_ID" in os.environ
        and variable.startswith(("SLURM_", "SBATCH_", "SRUN_"))
        and variable not in kept
    )
