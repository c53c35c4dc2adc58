"""Controllers that die, that wait for nothing, that are one too many."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.conftest import SHARDS, SOON, ClusterProject, assert_same_results
from tests.workflow.conftest import CHECKOUT, Project
from transfer_influence.operation.presence import claims_on

ALL_MODELS = Counter(range(24))
# One core each, or the eight jobs would not all fit beside the controller's.
PATIENCE = ("--patience", "20")  # seconds
OPTIONS = ("--set-threads", "train_sources=1", *SOON)


pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def project(converted) -> Iterator[ClusterProject]:
    """The slow study with its source data set converted, and no controller at the end."""
    yield converted
    launch(converted, "--cancel")


def launch(project: ClusterProject, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call scripts/launch.py in the project's folder."""
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / "launch.py"), "config/tiny.yaml", *arguments],
        cwd=project.folder,
        env={**project.cluster.environment, "PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def launched(project: ClusterProject, *shards: str) -> None:
    """Start a controller for some shards of source models."""
    run = launch(project, *PATIENCE, "--", *project.sources(*shards), *OPTIONS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the controller is SLURM job" in run.stdout


def started(project: ClusterProject, *shards: str) -> Counter[int]:
    """Return how often the training of each model began, from the logs."""
    logs = [project.log(shard) for shard in shards]
    text = "".join(log.read_text() for log in logs if log.exists())
    return Counter(int(number) for number in re.findall(r"source model (\d+): starts", text))


def finished(project: ClusterProject, *shards: str) -> bool:
    return all((project.results / "sources" / f"{shard}.parquet").exists() for shard in shards)


def said(project: ClusterProject) -> str:
    log = project.results / "logs" / "controller.log"
    return log.read_text() if log.exists() else ""


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
def all_in_training(project: ClusterProject) -> Iterator[None]:
    """Hold all eight shards in the middle of their training, for the time of the block."""
    held: dict[str, int] = {}

    def hold() -> bool:
        for shard in SHARDS:
            if shard not in held and started(project, shard) and (pid := project.training(shard)):
                os.kill(pid, signal.SIGSTOP)
                held[shard] = pid
        return len(held) == len(SHARDS)

    wait_for(hold, 180, "eight shards to be trained")
    try:
        yield
        assert all(psutil.Process(pid).status() == "stopped" for pid in held.values())
    finally:
        for pid in held.values():
            os.kill(pid, signal.SIGCONT)


def assert_undisturbed(project: ClusterProject, undisturbed: Project) -> None:
    """Check that every model was trained once and is what it should be, and nothing is left."""
    assert started(project, *SHARDS) == ALL_MODELS
    for shard in SHARDS:
        assert_same_results(project, undisturbed, shard)
    assert not list(project.results.glob("sources/.partial"))


def test_a_killed_launcher_and_its_jobs_are_taken_over_by_the_next(project, undisturbed):
    launched(project, *SHARDS)
    with all_in_training(project):
        for process in processes_of(project).values():
            process.kill()
        wait_for(lambda: len(project.jobs()) == len(SHARDS), 60, "the controller's job to end")
        launched(project, *SHARDS)
        wait_for(lambda: "waits for 8 job(s)" in said(project), 60, "its first words")
    wait_for(lambda: "the study is finished" in said(project), 240, "the study to end")
    assert_undisturbed(project, undisturbed)


def test_a_killed_snakemake_and_its_jobs_are_taken_over_by_the_next(project, undisturbed):
    project.start(*project.sources(*SHARDS))
    with all_in_training(project):
        project.programs[0].kill()
        locked = project.start(*project.sources(*SHARDS))
        assert locked.wait(60) == 1
        assert "Directory cannot be locked" in locked.output
        assert project.start("--unlock", *project.sources(*SHARDS)).wait(60) == 0
        again = project.start(*project.sources(*SHARDS))
        wait_for(lambda: len(project.jobs()) == 2 * len(SHARDS), 60, "the second copies")
    assert again.wait(300) == 0, again.output
    wait_for(lambda: not project.jobs(), 60, "the earlier jobs to end")
    assert_undisturbed(project, undisturbed)


def test_a_controller_that_must_go_leaves_its_jobs_and_comes_back(project, undisturbed):
    launched(project, *SHARDS)
    with all_in_training(project):
        (controller,) = [job for job in project.jobs() if job.name == "tiny-controller"]
        # What SLURM sends before a time limit.
        project.cluster.run("scancel", "--signal", "USR2", str(controller.id))
        wait_for(lambda: "stops here and will be started" in said(project), 30, "the signal")
        wait_for(lambda: "waits for 8 job(s)" in said(project), 120, "its second life")
    wait_for(lambda: "the study is finished" in said(project), 300, "the study to end")
    assert_undisturbed(project, undisturbed)


def test_a_second_controller_is_refused_whoever_starts_it(project):
    shard = SHARDS[0]
    launched(project, shard)
    wait_for(lambda: project.training(shard), 120, "the shard to be trained")
    second = launch(project, "--", *project.sources(shard))
    assert second.returncode == 1
    assert re.search(
        r"launch.py: the study is being run already, the \w+ is process", second.stderr
    )
    plain = project.start(*project.sources(shard))
    assert plain.wait(60) == 1
    assert "Directory cannot be locked" in plain.output
    # Even one that takes no heed of the lock.
    project.start("--unlock", *project.sources(shard)).wait(60)
    unlocked = project.start(*project.sources(shard))
    assert unlocked.wait(60) == 1
    assert "the study is being run by process" in unlocked.output
    status = launch(project, "--status").stdout
    assert "the controller is process" in status
    assert f"RUNNING rule_train_sources {shard}" in status


def test_cancel_ends_the_controller_and_its_jobs(project):
    launched(project, *SHARDS[:2])
    wait_for(lambda: project.training(SHARDS[0]), 120, "a shard to be trained")
    run = launch(project, "--cancel")
    assert run.returncode == 0, run.stderr
    assert "RUNNING controller" in run.stdout
    assert f"rule_train_sources {SHARDS[0]}" in run.stdout
    wait_for(lambda: not project.jobs(), 30, "all jobs to end")
    wait_for(lambda: not processes_of(project), 30, "all controllers to end")


def test_jobs_that_slurm_has_forgotten_do_not_hold_up_a_study(project, undisturbed):
    shard, cluster = SHARDS[0], project.cluster
    launched(project, shard)
    wait_for(lambda: project.training(shard), 120, "the shard to be trained")
    snakemake = processes_of(project)["snakemake"]
    snakemake.send_signal(signal.SIGSTOP)
    (job,) = [job for job in project.jobs() if job.name != "tiny-controller"]
    wait_for(lambda: finished(project, shard), 120, "the shard to be finished")
    cluster.remember_jobs(2)
    wait_for(lambda: cluster.job(job.id) is None, 180, "SLURM to forget the job")
    cluster.remember_jobs(300)
    snakemake.send_signal(signal.SIGCONT)
    wait_for(lambda: "the study is finished" in said(project), 240, "the study to end")
    assert "it waits for jobs that SLURM has forgotten" in said(project)
    assert started(project, shard) == Counter(range(3))
    assert_same_results(project, undisturbed, shard)


def test_a_controller_without_slurm_outlives_its_terminal(project, undisturbed):
    shard = SHARDS[0]
    local = ("--cluster", "local", "--profile", str(CHECKOUT / "profiles" / "local"))
    run = launch(project, *local, "--", *project.sources(shard))
    assert run.returncode == 0, run.stderr
    assert "the controller is process" in run.stdout
    wait_for(lambda: started(project, shard)[0], 60, "the first model")
    supervisor = processes_of(project)["controller"]
    assert os.getsid(supervisor.pid) != os.getsid(0)
    for process in processes_of(project).values():
        process.kill()
    again = launch(project, *local, "--follow", "--", *project.sources(shard))
    assert "the study is finished" in again.stdout, again.stdout + again.stderr
    assert started(project, shard) == Counter(range(3))
    assert_same_results(project, undisturbed, shard)
