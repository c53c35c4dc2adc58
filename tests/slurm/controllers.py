"""Studies that scripts/launch.py runs on the cluster: start them, look at them, hold them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import psutil

from tests.slurm.cluster import wait_for
from tests.slurm.conftest import ClusterProject
from tests.workflow.conftest import CHECKOUT
from transfer_influence.operation.presence import claims_on


def launch_command(*arguments: str) -> list[str]:
    """Return the command that calls scripts/launch.py in a project's folder."""
    script = str(CHECKOUT / "scripts" / "launch.py")
    return [sys.executable, script, "config/tiny.yaml", *arguments]


def launch(project: ClusterProject, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call scripts/launch.py in the project's folder."""
    return subprocess.run(
        launch_command(*arguments),
        cwd=project.folder,
        env={**project.cluster.environment, "PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def launched(project: ClusterProject, *arguments: str) -> None:
    """Start a controller in SLURM."""
    run = launch(project, *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the controller is SLURM job" in run.stdout


def said(project: ClusterProject) -> str:
    """Return what the controllers of a study and their Snakemakes have said so far."""
    log = project.results / "logs" / "controller.log"
    return log.read_text() if log.exists() else ""


def started(project: ClusterProject, *shards: str) -> Counter[int]:
    """Return how often the training of each model began, from the logs."""
    logs = [project.log(shard) for shard in shards]
    text = "".join(log.read_text() for log in logs if log.exists())
    return Counter(int(number) for number in re.findall(r"source model (\d+): starts", text))


def processes_of(project: ClusterProject) -> dict[str, psutil.Process]:
    """Return the processes that run a study, by role."""
    claims = claims_on(project.results)
    holders = {role: claims.holder(role) for role in ("controller", "snakemake")}
    return {
        role: psutil.Process(holder.process)
        for role, holder in holders.items()
        if holder and not holder.is_dead()
    }


@contextlib.contextmanager
def all_in_training(project: ClusterProject, *shards: str) -> Iterator[None]:
    """Hold shards of source models in the middle of their training, for the time of the block."""
    held: dict[str, int] = {}

    def hold() -> bool:
        for shard in shards:
            if shard not in held and started(project, shard) and (pid := project.training(shard)):
                os.kill(pid, signal.SIGSTOP)
                held[shard] = pid
        return len(held) == len(shards)

    wait_for(hold, 400, f"{len(shards)} shards to be trained")
    try:
        yield
        assert all(psutil.Process(pid).status() == "stopped" for pid in held.values())
    finally:
        for pid in held.values():
            os.kill(pid, signal.SIGCONT)


def must_go(project: ClusterProject) -> None:
    """Send a study's controller what SLURM sends before a time limit."""
    (controller,) = [job for job in project.jobs() if job.name == "tiny-controller"]
    project.cluster.run("scancel", "--signal", "USR2", str(controller.id))
