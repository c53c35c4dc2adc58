"""The jobs of a study in SLURM's queue."""

import getpass
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "\x1f"  # in no name, folder or comment
CONTROLLER = "controller"  # what a controller's job does, in its comment
FORMAT = SEPARATOR.join(("%i", "%T", "%j", "%Z", "%k"))  # number, state, name, folder, comment
NAME_LENGTH = 50  # of a job-name prefix, at most, by Snakemake's SLURM plugin


def name_prefix(study: str) -> str:
    """Return the prefix of the names of a study's jobs; Snakemake adds an underscore and a UUID."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", study)[:NAME_LENGTH]


def controller_name(study: str) -> str:
    """Return the name of the jobs that control a study."""
    return f"{name_prefix(study)}-{CONTROLLER}"


@dataclass(frozen=True)
class QueuedJob:
    """A job in SLURM's queue: its number, its state in SLURM's words, and what it does."""

    number: str
    state: str
    work: str

    def __str__(self) -> str:
        return f"{self.number} {self.state} {self.work}"

    @property
    def has_started(self) -> bool:
        """Whether cancelling it would lose anything."""
        return self.state not in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


def training_jobs(study: str, folder: Path) -> list[QueuedJob]:
    """Return the jobs that any Snakemake in `folder` submitted for a study and that are not over.

    Raises:
        CalledProcessError: SLURM does not answer.
    """
    # With the UUID, as another study's name may begin with this one's.
    uuid = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    return queued_jobs(f"{re.escape(name_prefix(study))}_{uuid}", folder)


def controller_jobs(study: str, folder: Path) -> list[QueuedJob]:
    """Return the controllers of a study that were started in `folder` and are not over.

    Raises:
        CalledProcessError: SLURM does not answer.
    """
    return queued_jobs(re.escape(controller_name(study)), folder)


def queued_jobs(name: str, folder: Path) -> list[QueuedJob]:
    """Return this user's jobs in the queue whose name matches, and that run in `folder`."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--user", getpass.getuser(), "--format", FORMAT],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    rows = [line.split(SEPARATOR) for line in listed.splitlines()]
    return [
        QueuedJob(number, state, work.replace("_wildcards_", " "))
        for number, state, called, where, work in rows
        if re.fullmatch(name, called) and Path(where).resolve() == folder.resolve()
    ]


def cancel(numbers: list[str]) -> None:
    """Cancel jobs; those that are over are no error."""
    if numbers:
        subprocess.run(["scancel", *numbers], capture_output=True, check=False, timeout=60)
