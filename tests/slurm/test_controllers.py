"""Controllers that die, that wait for nothing, that are one too many."""

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.conftest import SHARDS, SOON, ClusterProject, assert_same_results
from tests.slurm.controllers import (
    all_in_training,
    launch,
    launched,
    must_go,
    processes_of,
    said,
    started,
)
from tests.workflow.conftest import CHECKOUT, Project

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


def start(project: ClusterProject, *shards: str) -> None:
    """Start a controller for some shards of source models."""
    launched(project, *PATIENCE, "--", *project.sources(*shards), *OPTIONS)


def finished(project: ClusterProject, *shards: str) -> bool:
    return all((project.results / "sources" / f"{shard}.parquet").exists() for shard in shards)


def assert_undisturbed(project: ClusterProject, undisturbed: Project) -> None:
    """Check that every model was trained once and is what it should be, and nothing is left."""
    assert started(project, *SHARDS) == ALL_MODELS
    for shard in SHARDS:
        assert_same_results(project, undisturbed, shard)
    assert not list(project.results.glob("sources/.partial"))


def test_a_killed_launcher_and_its_jobs_are_taken_over_by_the_next(project, undisturbed):
    start(project, *SHARDS)
    with all_in_training(project, *SHARDS):
        for process in processes_of(project).values():
            process.kill()
        wait_for(lambda: len(project.jobs()) == len(SHARDS), 60, "the controller's job to end")
        start(project, *SHARDS)
        wait_for(lambda: "waits for 8 job(s)" in said(project), 60, "its first words")
    wait_for(lambda: "the study is finished" in said(project), 240, "the study to end")
    assert_undisturbed(project, undisturbed)


def test_a_killed_snakemake_and_its_jobs_are_taken_over_by_the_next(project, undisturbed):
    project.start(*project.sources(*SHARDS))
    with all_in_training(project, *SHARDS):
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
    start(project, *SHARDS)
    with all_in_training(project, *SHARDS):
        must_go(project)
        wait_for(lambda: "stops here and will be started" in said(project), 30, "the signal")
        # It was asked to end, as it could still record what has finished.
        wait_for(lambda: "Will exit after finishing" in said(project), 30, "Snakemake's farewell")
        wait_for(lambda: "waits for 8 job(s)" in said(project), 120, "its second life")
    wait_for(lambda: "the study is finished" in said(project), 300, "the study to end")
    assert_undisturbed(project, undisturbed)


def test_a_second_controller_is_refused_whoever_starts_it(project):
    shard = SHARDS[0]
    start(project, shard)
    with all_in_training(project, shard):
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
    start(project, *SHARDS[:2])
    wait_for(lambda: project.training(SHARDS[0]), 120, "a shard to be trained")
    run = launch(project, "--cancel")
    assert run.returncode == 0, run.stderr
    assert "RUNNING controller" in run.stdout
    assert f"rule_train_sources {SHARDS[0]}" in run.stdout
    wait_for(lambda: not project.jobs(), 30, "all jobs to end")
    wait_for(lambda: not processes_of(project), 30, "all controllers to end")


def test_jobs_that_slurm_has_forgotten_do_not_hold_up_a_study(project, undisturbed):
    shard, cluster = SHARDS[0], project.cluster
    start(project, shard)
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
