"""How one job runs: its GPUs, its processes, its scratch folder. None of it changes a result."""

import argparse
import contextlib
import ctypes
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import FailedModels
from transfer_influence.errors import UserError
from transfer_influence.locks import locked

log = logging.getLogger(__name__)

POLL = 1.0  # seconds between two looks for a free GPU
PATIENCE = 10.0  # seconds that copies have to end; SLURM gives a job 30
GPU_NAME = re.compile(r"\d+|(GPU|MIG)-.+")
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
        tensorboard: folder for TensorBoard's curves, if any are to be written.
    """

    gpus: int
    processes: int
    workers: int
    scratch: str | None
    failed_models: FailedModels
    tensorboard: Path | None = None

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options to a program."""
        group = parser.add_argument_group("how to run; changes no result")
        group.add_argument(
            "--gpus",
            type=at_least(0),
            default=1,
            help="GPUs to reserve, of those that can be seen; all are used (default: %(default)s)",
        )
        group.add_argument(
            "--processes",
            type=at_least(1),
            default=1,
            help="models trained at a time on each GPU, or on the CPU (default: %(default)s)",
        )
        group.add_argument(
            "--workers",
            type=at_least(1),
            default=1,
            help="threads that decode images (default: %(default)s)",
        )
        group.add_argument(
            "--scratch",
            default=os.getenv("TRANSFER_INFLUENCE_SCRATCH") or None,
            help="folder on a disk of this machine to copy the images to (default: "
            "$TRANSFER_INFLUENCE_SCRATCH, which is the study's in the workflow)",
        )
        group.add_argument(
            "--failed-models",
            choices=get_args(FailedModels),
            default=os.getenv("TRANSFER_INFLUENCE_FAILED_MODELS", "stop"),
            help="what to do when a loss is not finite, twice (default: %(default)s)",
        )
        group.add_argument(
            "--tensorboard",
            type=Path,
            default=os.getenv("TRANSFER_INFLUENCE_TENSORBOARD") or None,
            help="folder for TensorBoard's curves (default: $TRANSFER_INFLUENCE_TENSORBOARD, which "
            "is the study's in the workflow if it wants them)",
        )

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "JobOptions":
        """Return the options that a program was called with."""
        return cls(**{name: getattr(arguments, name) for name in cls.__dataclass_fields__})


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from `least` on."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: give {least} or more")
        return int(text)

    return number


@contextlib.contextmanager
def all_devices(options: JobOptions) -> Iterator[int]:
    """Use all GPUs of the job: run a copy of this very program for each further process.

    The copies share the models of the shard by their claims. Each process sees one GPU.

    Yields:
        Threads that decode images, for this process.

    Raises:
        UserError: a copy failed.
    """
    with sigterm_unwinds(), reserved(options.gpus) as gpus:
        homes: list[str | None] = [*gpus] or [None]
        homes *= options.processes
        workers = max(1, options.workers // len(homes))
        copies = [start_copy(gpu, workers) for gpu in homes[1:]]
        if homes[0] is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = homes[0]
        try:
            yield workers
            failed = [copy.pid for copy in copies if copy.wait() != 0]
        except BaseException:
            end(copies)
            raise
        if failed:
            raise UserError(f"{len(failed)} of {len(copies)} further processes failed; see above.")


@contextlib.contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM end the block as an error does, so that all it holds is given back.

    It is what a job gets at its time limit, when it is cancelled and when it is preempted.
    """

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except SystemExit:
        log.warning("ends early: it was told to, by SIGTERM")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def end(copies: list[subprocess.Popen[bytes]]) -> None:
    """End copies of this program, by force if they do not hear."""
    for copy in copies:
        copy.terminate()
    for copy in copies:
        try:
            copy.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            copy.kill()
            copy.wait()


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
    with contextlib.ExitStack() as stack:
        held = lock_some(visible, wanted, stack)
        if len(held) < wanted:
            log.info("waiting for %d free GPU(s) of %s", wanted, ", ".join(visible))
        while len(held) < wanted:
            stack.close()  # others may do with fewer
            time.sleep(POLL)
            held = lock_some(visible, wanted, stack)
        yield held


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.getenv("CUDA_VISIBLE_DEVICES")
    if named is not None:
        # As CUDA reads it, the first name that is none, such as -1, ends the list.
        names = (name.strip() for name in named.split(","))
        return list(dict.fromkeys(itertools.takewhile(GPU_NAME.fullmatch, names)))
    import torch  # slow to import

    return [str(number) for number in range(torch.cuda.device_count())]


def lock_some(gpus: list[str], wanted: int, stack: contextlib.ExitStack) -> list[str]:
    """Lock as many of the GPUs as are free and wanted, until the stack is closed; return them."""
    held: list[str] = []
    for gpu in gpus:
        if len(held) < wanted and stack.enter_context(locked(lock_file(gpu), wait=False)):
            held.append(gpu)
    return held


def lock_file(gpu: str) -> Path:
    """Return the file whose lock is the reservation of a GPU."""
    # Inside a SLURM job the numbers are the job's own: 0 is another GPU in the next job.
    scope = f"{os.getuid()}-{os.getenv('SLURM_JOB_ID', 'machine')}"
    name = gpu.replace("/", "_")  # older drivers have it in the names of slices of a GPU
    return Path(tempfile.gettempdir(), f"transfer-influence-{scope}-gpu-{name}.lock")
