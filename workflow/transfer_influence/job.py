"""How one job runs: its GPUs, its processes, its scratch folder. None of it changes a result."""

import argparse
import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import FailedModels
from transfer_influence.errors import UserError

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks for a free GPU
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


@dataclass(frozen=True)
class JobOptions:
    """The options that all training programs share.

    Attributes:
        gpus: GPUs to reserve, of those that can be seen; 0 to use them as they are.
        processes: models trained at a time on each GPU, or on the CPU where there is none.
        workers: threads that decode images, over all processes.
        scratch: folder on a disk of this machine to copy converted images to.
        failed_models: whether a model that cannot be trained stops the study.
    """

    gpus: int
    processes: int
    workers: int
    scratch: str | None
    failed_models: FailedModels

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options to a program."""
        group = parser.add_argument_group("how to run; changes no result")
        group.add_argument(
            "--gpus",
            type=int,
            default=1,
            help="GPUs to reserve, of those that can be seen; all are used (default: %(default)s)",
        )
        group.add_argument(
            "--processes",
            type=int,
            default=1,
            help="models trained at a time on each GPU, or on the CPU (default: %(default)s)",
        )
        group.add_argument(
            "--workers",
            type=int,
            default=1,
            help="threads that decode images (default: %(default)s)",
        )
        group.add_argument(
            "--scratch", help="folder on a disk of this machine to copy the images to"
        )
        group.add_argument(
            "--failed-models",
            choices=get_args(FailedModels),
            default="stop",
            help="what to do when a loss is not finite, twice (default: %(default)s)",
        )

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "JobOptions":
        """Return the options that a program was called with."""
        return cls(**{name: getattr(arguments, name) for name in cls.__dataclass_fields__})


@contextlib.contextmanager
def all_devices(options: JobOptions) -> Iterator[int]:
    """Use all GPUs of the job: run a copy of this very program for each further process.

    The copies share the models of the shard by their claims. Each process sees one GPU.

    Yields:
        Threads that decode images, for this process.

    Raises:
        UserError: a copy failed.
    """
    with reserved(options.gpus) as gpus:
        homes: list[str | None] = [*gpus] or [None]
        homes *= options.processes
        workers = max(1, options.workers // len(homes))
        copies = [start_copy(gpu, workers) for gpu in homes[1:]]
        if homes[0] is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = homes[0]
        try:
            yield workers
        except BaseException:
            for copy in copies:
                copy.terminate()
            raise
        failed = [copy.pid for copy in copies if copy.wait() != 0]
        if failed:
            raise UserError(f"{len(failed)} of {len(copies)} further processes failed; see above.")


def start_copy(gpu: str | None, workers: int) -> subprocess.Popen[bytes]:
    """Start this program once more, on one GPU; it ends when this process does."""
    # As later options win, the copy reserves nothing and starts no copies.
    once = ["--gpus", "0", "--processes", "1", "--workers", str(workers)]
    seen = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    libc = ctypes.CDLL(None)
    return subprocess.Popen(
        [sys.executable, *sys.argv, *once],
        env={**os.environ, **seen},
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )


@contextlib.contextmanager
def reserved(gpus: int) -> Iterator[list[str]]:
    """Reserve that many of the visible GPUs, waiting until they are free.

    Jobs that run side by side on one machine so never share a GPU by accident. A GPU is reserved by
    a lock that ends with its process, however that ends.

    Args:
        gpus: how many; 0 reserves none and returns what can be seen. A machine with fewer gives
            all it has.

    Yields:
        The GPUs as CUDA_VISIBLE_DEVICES names them; empty on a machine without.
    """
    visible = visible_gpus()
    wanted = min(gpus, len(visible))
    if wanted == 0:
        yield visible
        return
    held = try_to_lock(visible, wanted)
    if not held:
        log.info("waiting for %d free GPU(s) of %s", wanted, ", ".join(visible))
    while not held:
        time.sleep(POLL)
        held = try_to_lock(visible, wanted)
    try:
        yield list(held)
    finally:
        for lock in held.values():
            os.close(lock)


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.getenv("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch  # slow to import

    return [str(number) for number in range(torch.cuda.device_count())]


def try_to_lock(gpus: list[str], wanted: int) -> dict[str, int]:
    """Lock that many GPUs; return their open lock files, or nothing if too few are free."""
    # Inside a SLURM job the numbers are the job's own: 0 is another GPU in the next job.
    scope = f"{os.getuid()}-{os.getenv('SLURM_JOB_ID', 'machine')}"
    held: dict[str, int] = {}
    for gpu in gpus:
        path = Path(tempfile.gettempdir()) / f"transfer-influence-{scope}-gpu-{gpu}.lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        held[gpu] = lock
        if len(held) == wanted:
            return held
    for lock in held.values():
        os.close(lock)
    return {}
