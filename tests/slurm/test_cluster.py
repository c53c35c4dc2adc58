"""The cluster itself, and the profile for SLURM on it when nothing goes wrong."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import PROFILE, SHARDS, asked_for, assert_same_results

pytestmark = pytest.mark.timeout(600)


def running(*commands: str) -> set[str]:
    """Return those of some commands that run on this machine, whoever started them."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            words = (process / "cmdline").read_text().rstrip("\0").split("\0")
            found.add(" ".join([Path(words[0]).name, *words[1:]]))
    return found & set(commands)


def variables(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def test_a_stopped_cluster_leaves_nothing_behind():
    # Found again by how long they sleep, which no other test on this machine does.
    lasting = [f"sleep {os.getpid()}.{digit}" for digit in (1, 2)]
    with Cluster(nodes=1) as cluster:
        # One process of a job's step, and one that has left the job's session.
        number = cluster.submit(f"setsid {lasting[0]} & srun {lasting[1]}")
        wait_for(lambda: len(running(*lasting)) == 2, 30, "the job's processes")
        assert cluster.job(number).state == "RUNNING"
    assert not running(*lasting)
    assert not cluster.pids()
    assert not cluster.folder.exists()


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing_behind():
    cluster = Cluster(nodes=1, min_job_age=-1)
    with pytest.raises(RuntimeError, match="ended") as raised:
        cluster.start()
    assert any("MinJobAge value (-1) is less than zero" in note for note in raised.value.__notes__)
    assert not cluster.pids()
    assert not cluster.folder.exists()


def test_jobs_outlive_the_daemons_that_are_started_again():
    with Cluster(nodes=1) as cluster:
        number = cluster.submit("sleep 10")
        wait_for(lambda: cluster.job(number).state == "RUNNING", 30, "the job to run")
        cluster.restart("slurmctld", signal.SIGTERM)
        cluster.restart("n1", signal.SIGKILL)
        assert cluster.job(number).state == "RUNNING"
        wait_for(lambda: cluster.job(number).state == "COMPLETED", 60, "the job to end")
        assert cluster.mend() == []


def test_shards_are_jobs_that_see_one_gpu_each(project, undisturbed):
    shards = SHARDS[:2]
    controller = project.start(*project.sources(*shards))

    def training() -> list[int]:
        pids = [project.training(shard) for shard in shards]
        return pids if all(pids) else []

    seen = [variables(pid) for pid in wait_for(training, 180, "both shards to be trained")]
    jobs = [project.cluster.job(int(environment["SLURM_JOB_ID"])) for environment in seen]
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for environment in seen]
    assert set(gpus) <= {"0", "1"}
    assert len({(job.node, gpu) for job, gpu in zip(jobs, gpus, strict=True)}) == 2
    for shard, job in zip(shards, jobs, strict=True):
        assert job.comment == f"rule_train_sources_wildcards_{shard}"
        assert job.partition == PROFILE["default-resources"]["slurm_partition"]
        assert job.cpus == PROFILE["set-threads"]["train_sources"]
        assert job.name.startswith("tiny_")
        assert job.memory == f"{asked_for('mem_mb', attempt=1)}M"
        assert job.time_limit == f"{asked_for('runtime', attempt=1) // 60}:00:00"
    assert controller.wait(300) == 0, controller.output
    for shard in shards:
        assert_same_results(project, undisturbed, shard)
