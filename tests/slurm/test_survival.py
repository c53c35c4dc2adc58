"""What clusters do to jobs. No finished model is trained again, and none differs in its last bit.

One study meets all accidents, each in a shard of its own.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.cluster import Job, wait_for
from tests.slurm.conftest import (
    PROFILE,
    SHARDS,
    BackgroundProgram,
    ClusterProject,
    asked_for,
    assert_same_results,
    converted_project,
)
from transfer_influence.config.study import shard_models

# The study takes two to three minutes.
pytestmark = pytest.mark.timeout(900)


def hang_until_its_time_is_up(project: ClusterProject, shard: str, job: Job) -> None:
    # A minute is the shortest limit there is; SLURM looks for jobs over theirs every 30 s.
    os.kill(project.training(shard), signal.SIGSTOP)
    project.cluster.run("scontrol", "update", f"JobId={job.id}", "EndTime=now")


def kill(project: ClusterProject, shard: str, job: Job) -> None:
    os.kill(project.training(shard), signal.SIGKILL)


def cancel(project: ClusterProject, shard: str, job: Job) -> None:
    project.cluster.cancel(job.id)


def requeue(project: ClusterProject, shard: str, job: Job) -> None:
    project.cluster.requeue(job.id)


def preempt(project: ClusterProject, shard: str, job: Job) -> None:
    urgent = ("--partition=gpu", "--exclusive", f"--nodelist={job.node}")
    project.cluster.submit("sleep 1", *urgent)


def lose_node(project: ClusterProject, shard: str, job: Job) -> None:
    def left() -> bool:
        return project.cluster.job(job.id).state == "PENDING"

    project.cluster.set_node(job.node, "down")
    try:
        wait_for(left, 30, "the job to be requeued")
    finally:
        project.cluster.set_node(job.node, "resume")


@dataclass(frozen=True)
class Accident:
    """What happens to a shard while its second model is trained.

    Attributes:
        happen: makes it happen; None where the job's resources do it.
        states: what the accounts say of the shard's jobs, run by run.
        again: who starts the job again: Snakemake, with a new job; SLURM; or nobody.
    """

    happen: Callable[[ClusterProject, str, Job], None] | None
    states: list[str]
    again: str


ACCIDENTS = {
    "over its time": Accident(
        hang_until_its_time_is_up, ["TIMEOUT", "COMPLETED"], again="Snakemake"
    ),
    "over its memory": Accident(None, ["FAILED", "COMPLETED"], again="Snakemake"),
    "killed": Accident(kill, ["FAILED", "COMPLETED"], again="Snakemake"),
    "cancelled": Accident(cancel, ["CANCELLED", "COMPLETED"], again="Snakemake"),
    "requeued": Accident(requeue, ["REQUEUED", "COMPLETED"], again="SLURM"),
    "preempted": Accident(preempt, ["PREEMPTED", "COMPLETED"], again="SLURM"),
    "on a lost node": Accident(lose_node, ["NODE_FAIL", "COMPLETED"], again="SLURM"),
    "spared": Accident(None, ["COMPLETED"], again="nobody"),
}
INTERRUPTED = [name for name, accident in ACCIDENTS.items() if accident.happen]
SHARD = dict(zip(ACCIDENTS, SHARDS, strict=True))


def of(accident: str, resource: str, expression: str) -> str:
    """Set a resource: an expression for the shard of an accident, the profile's for the others."""
    others = PROFILE["set-resources"]["train_sources"][resource]
    condition = f"wildcards.shard == {SHARD[accident]!r}"
    return f"train_sources:{resource}={expression} if {condition} else {others}"


RESOURCES = [
    # A node for each job, so that the loss of one hits one shard; and all jobs can be preempted.
    "train_sources:cpus_per_task=8",
    "train_sources:slurm_partition='low'",
    of("over its time", "runtime", "5 * attempt"),
    # First too little to import PyTorch.
    of("over its memory", "mem_mb", "200 * 10 ** (attempt - 1)"),
]


@dataclass(frozen=True)
class Survivor:
    """The study after its accidents.

    Attributes:
        project: where it ran.
        controller: the Snakemake that ran it.
        met: the jobs that the accidents happened to, as they were just before.
    """

    project: ClusterProject
    controller: BackgroundProgram
    met: dict[str, Job]

    def jobs(self, accident: str) -> list[Job]:
        """Return the jobs of a shard from the accounts; a requeued one once for each run."""
        return [
            job
            for job in self.project.cluster.history()
            if job.folder == self.project.folder and job.comment.endswith(SHARD[accident])
        ]

    def shown_log(self, accident: str) -> list[str]:
        """Return the lines of a shard's log that the controller printed when its job failed."""
        path = self.project.log(SHARD[accident]).relative_to(self.project.folder)
        shown = re.search(
            rf"^Logfile {path}:\n(=+)\n(.*?)\n\1$", self.controller.output, re.M | re.S
        )
        return shown[2].splitlines() if shown else []


def job_at_second_model(project: ClusterProject, shard: str) -> Job | None:
    """Return the job of a shard if it has come to the second model."""
    log, second = project.log(shard), shard_models(shard)[1]
    if not log.exists() or f"source model {second}: starts" not in log.read_text():
        return None
    running = [job for job in project.jobs() if job.state == "RUNNING"]
    return next((job for job in running if job.comment.endswith(shard)), None)


@pytest.fixture(scope="module")
def survivor(cluster, undisturbed, tmp_path_factory) -> Iterator[Survivor]:
    folder = tmp_path_factory.mktemp("survival") / "project"
    with converted_project(cluster, undisturbed, folder) as project:
        controller = project.start(*project.sources(*SHARDS), "--set-resources", *RESOURCES)
        met: dict[str, Job] = {}
        while len(met) < len(INTERRUPTED) and controller.running:
            for name in set(INTERRUPTED) - set(met):
                if job := job_at_second_model(project, SHARD[name]):
                    met[name] = job
                    ACCIDENTS[name].happen(project, SHARD[name], job)
            time.sleep(0.1)
        assert controller.wait(600) == 0, controller.output
        assert set(met) == set(INTERRUPTED)
        yield Survivor(project, controller, met)


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_jobs_are_started_again_by_whom_they_should(survivor, accident):
    jobs = survivor.jobs(accident)
    assert [job.state for job in jobs] == ACCIDENTS[accident].states
    assert len({job.id for job in jobs}) == 1 + (ACCIDENTS[accident].again == "Snakemake")


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_results_are_those_of_an_undisturbed_run(survivor, undisturbed, accident):
    assert_same_results(survivor.project, undisturbed, SHARD[accident])


@pytest.mark.parametrize("accident", INTERRUPTED)
def test_only_the_interrupted_model_is_trained_again(survivor, accident):
    models = list(shard_models(SHARD[accident]))
    log = survivor.project.log(SHARD[accident]).read_text()
    started, ended = (
        [int(model) for model in re.findall(rf"source model (\d+): {event}", log)]
        for event in ("starts", "ends")
    )
    assert ended == models
    assert len(started) == len(models) + 1
    assert set(started) == set(models)


@pytest.mark.parametrize("accident", ["over its time", "killed", "cancelled"])
def test_the_log_of_a_failed_job_is_shown(survivor, accident):
    second = shard_models(SHARD[accident])[1]
    # What follows is a word of farewell, where there was time for one.
    assert f"source model {second}: " in "".join(survivor.shown_log(accident)[-3:])


def test_a_failed_job_is_given_more_as_the_profile_says(survivor):
    expected = [f"{asked_for('mem_mb', attempt)}M" for attempt in (1, 2)]
    assert [job.memory for job in survivor.jobs("killed")] == expected
    assert expected[0] != expected[1]


def test_a_job_over_its_time_is_given_more(survivor):
    assert survivor.met["over its time"].time_limit == "5:00"
    assert survivor.jobs("over its time")[-1].time_limit == "00:10:00"


def test_a_job_over_its_memory_is_given_more(survivor):
    jobs = survivor.jobs("over its memory")
    assert [job.memory for job in jobs] == ["200M", "2000M"]
    (path,) = re.findall(
        rf"^    log: .* (\S+/{jobs[0].id}\.log) ", survivor.controller.output, re.M
    )
    assert "exceeded memory limit" in Path(path).read_text()
