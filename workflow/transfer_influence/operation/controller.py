"""The controller of a study: starts Snakemake, watches it, and clears up after its predecessor."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from submitit.helpers import Checkpointable, DelayedSubmission

from transfer_influence.errors import UserError
from transfer_influence.operation import slurm
from transfer_influence.operation.growth import Growth
from transfer_influence.operation.presence import at_work

log = logging.getLogger(__name__)

POLL = 60.0  # seconds between two looks at the queue, which all users of a cluster share
GRACE = 30.0  # seconds, of those between a controller's signal and its time limit
RESTARTS = 10  # of a Snakemake that hangs, in one life of a controller

Leftovers = Literal["wait", "cancel"]


def log_of(results: Path) -> Path:
    """Return the log of all controllers of a study, and of the Snakemakes they run."""
    return results / "logs" / "controller.log"


@dataclass
class Controller(Checkpointable):
    """What submitit runs, and runs again after a time limit or a preemption.

    Attributes:
        snakemake: the command, with all its arguments.
        study: name of the study.
        results: folder of its results, absolute.
        folder: where Snakemake runs.
        asks_slurm: whether Snakemake's jobs are SLURM's.
        leftovers: what to do with running jobs of an earlier Snakemake.
        patience: seconds without a job in the queue and without a word from Snakemake, after which
            it is taken to wait for jobs that SLURM has forgotten.
        gpus: CUDA_VISIBLE_DEVICES as the user has it; submitit's local executor clears it.
        growth: how far the study is to grow before it is finished; None if it is not to.
    """

    snakemake: list[str]
    study: str
    results: Path
    folder: Path
    asks_slurm: bool
    leftovers: Leftovers
    patience: float
    gpus: str | None
    growth: Growth | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)

    @property
    def pause(self) -> float:
        """Seconds between two looks at the queue."""
        return min(POLL, self.patience / 4)

    def __call__(self) -> None:
        """Run the study to its end; exit with status 1 if that is an error."""
        path = log_of(self.results)
        path.parent.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(
            filename=path,
            level=logging.INFO,
            format="%(asctime)s controller: %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
            force=True,
        )
        try:
            with at_work(self.results, "controller"):
                self.run()
        except UserError as error:
            log.error("%s", error)
            sys.exit(1)
        except Exception:
            log.exception("an error that should not be")
            raise

    def checkpoint(self, *args: Any, **kwargs: Any) -> DelayedSubmission:
        """End Snakemake without its jobs; submitit calls this before a time limit and so on."""
        log.info("stops here and will be started again; the jobs run on")
        if self._process is not None:
            end_without_jobs(self._process.pid)
        return super().checkpoint(*args, **kwargs)

    def run(self) -> None:
        """Run the study, after it has grown if it is to.

        Raises:
            UserError: see `finish`.
        """
        if self.growth:
            self.grow(self.growth)
        self.finish()
        log.info("the study is finished")
        if self.growth:
            log.info("set models: %d in its file to keep it so", self.growth.study.models)

    def grow(self, growth: Growth) -> None:
        """Train more and more models until the influences are reliable, or no more are allowed.

        Raises:
            UserError: see `finish`.
        """
        while True:
            self.finish("--", *map(str, growth.tables))
            found = growth.look()
            models = growth.study.models
            listed = "".join(f"\n    {each}" for each in found)
            log.info("reliability of %d models:%s", models, listed)
            following = growth.next_models(found)
            if growth.is_reached(found):
                log.info("all lower ends are %g or more; models: %d do", growth.goal, models)
                return
            log.info("%s", growth.expected(found))
            if following == models:
                log.info("no more models are allowed; goes on with models: %d", models)
                return
            log.info("goes on to models: %d", following)
            growth.write(following)

    def finish(self, *arguments: str) -> None:
        """Run Snakemake, with some more arguments, until it ends by itself.

        Raises:
            UserError: Snakemake, or another controller, is running the study; Snakemake ends with
                an error, or hangs again and again.
        """
        for _ in range(RESTARTS):
            self.settle()
            status = self.watch(*arguments)
            if status == 0:
                return
            if status is not None:
                raise UserError(f"Snakemake ended with status {status}; the reasons are above.")
        raise UserError(f"Snakemake hung {RESTARTS} times; ask SLURM's administrators why.")

    def settle(self) -> None:
        """Wait until nothing of an earlier Snakemake is at work, and unlock the folder.

        Jobs that have not started are cancelled: they will be submitted anew. Jobs that run are
        waited for; Snakemake records their outputs when it starts.

        Raises:
            UserError: a Snakemake is running the study.
        """
        # As long as this claim is ours, no Snakemake is at work, and a lock is that of a dead one.
        with at_work(self.results, "snakemake"):
            told: list[slurm.QueuedJob] = []
            while jobs := self.queue():
                running = [job for job in jobs if job.has_started and self.leftovers == "wait"]
                slurm.cancel([job for job in jobs if job not in running])
                if running != told:
                    listed = "".join(f"\n    {job}" for job in running)
                    log.info("waits for %d job(s) of an earlier run:%s", len(running), listed)
                    told = running
                time.sleep(self.pause)
            self.start("--unlock", "--quiet", "all").wait()

    def watch(self, *arguments: str) -> int | None:
        """Run Snakemake; return its status, or None if it hung and was killed."""
        self._process = self.start(*arguments)
        said, since = 0, time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(self.pause)
            size = log_of(self.results).stat().st_size
            if size != said or has_children(self._process.pid) or self.jobs_may_run():
                said, since = size, time.monotonic()
            elif time.monotonic() - since > self.patience:
                log.warning(
                    "for %.0f s no job was in the queue and Snakemake said nothing: it waits for "
                    "jobs that SLURM has forgotten, and is started again",
                    time.monotonic() - since,
                )
                self._process.kill()  # at once, so that it cannot cancel jobs
                self._process.wait()
                self._process = None
                return None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start Snakemake, with its output in the log."""
        env = {name: value for name, value in os.environ.items() if not slurm.is_of_a_job(name)}
        env.pop("CUDA_VISIBLE_DEVICES", None)
        if self.gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus
        with log_of(self.results).open("a") as output, deaf_children():
            return subprocess.Popen(
                [*self.snakemake, *arguments],
                cwd=self.folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def jobs_may_run(self) -> bool:
        """Tell whether there may be jobs that Snakemake waits for; without SLURM, always."""
        return not self.asks_slurm or bool(self.queue())

    def queue(self) -> list[slurm.QueuedJob]:
        """Return the study's jobs, asking until SLURM answers; none without SLURM."""
        while self.asks_slurm:
            try:
                return slurm.training_jobs(self.study, self.folder)
            except (subprocess.SubprocessError, OSError) as error:
                log.warning("SLURM does not answer (%s); asks again", error)
                time.sleep(self.pause)
        return []

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_process": None}


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Start processes that do not hear the signal by which submitit is told of a time limit.

    A SLURM that tracks processes by their parents sends it to all of a job, which would end them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_without_jobs(snakemake: int) -> None:
    """End a Snakemake, but not its jobs; it has `GRACE` seconds to record what has finished.

    On SIGTERM it submits nothing more and waits for its jobs; SIGINT would cancel them.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(snakemake)
        process.terminate()
        # Not by subprocess, whose own wait may be what a signal has interrupted.
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(GRACE)
        process.kill()


def has_children(process: int) -> bool:
    """Tell whether a process is waiting for others that it started, such as local jobs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(process).children())
    return False
