"""A study on four nodes under random accidents, a few a minute: `pytest tests/slurm -m soak`.

TRANSFER_INFLUENCE_SOAK_SECONDS says for how long (default 600), TRANSFER_INFLUENCE_SOAK_SEED which
accidents (default 0).
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster, Job, missing
from tests.slurm.conftest import SOON, ClusterProject
from tests.slurm.controllers import launch, processes_of, said
from tests.slurm.records import assert_all_on_record, assert_change_plans_all_training
from tests.workflow.conftest import RECIPE, STUDY, Project, write_project

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4000)]

SECONDS = float(os.getenv("TRANSFER_INFLUENCE_SOAK_SECONDS", "600"))
SEED = int(os.getenv("TRANSFER_INFLUENCE_SOAK_SEED", "0"))
WHOLE = {
    **STUDY,
    "models": 96,
    "models_per_job": 8,
    "source": {**STUDY["source"], "recipe": {**RECIPE, "epochs": 40}},
    "targets": {"held_out": STUDY["targets"]["held_out"]},
    "counterfactuals": {
        "orders": ["top"],
        "counts": [0, 2],
        "replicates": 4,
        "replicates_per_job": 1,
    },
}
RULES = ("train_sources", "transfer", "counterfactual_source", "counterfactual_transfer")
OPTIONS = (
    *("--patience", "60", "--", "--set-threads"),
    *(f"{rule}=1" for rule in RULES),
    *SOON,
)


def training_processes(project: ClusterProject) -> list[psutil.Process]:
    """Return the processes of the study's training programs."""
    found = []
    for pid in project.cluster.pids():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            words = process.cmdline()
            if any(word.endswith(tuple(f"/{rule}.py" for rule in RULES)) for word in words[1:2]):
                found.append(process)
    return found


def running(project: ClusterProject, controller: bool) -> list[Job]:
    """Return the study's jobs that run: its controller, or all others."""
    jobs = [job for job in project.jobs() if job.state == "RUNNING"]
    return [job for job in jobs if (job.name == "tiny-controller") == controller]


def hit_process(number: signal.Signals) -> Callable[[ClusterProject, random.Random], bool]:
    """Return an accident: a training process gets a signal."""

    def happen(project: ClusterProject, chance: random.Random) -> bool:
        processes = training_processes(project)
        if processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(processes).send_signal(number)
        return bool(processes)

    return happen


def hit_job(what: str, controller: bool = False) -> Callable[[ClusterProject, random.Random], bool]:
    """Return an accident: a job is cancelled or requeued."""

    def happen(project: ClusterProject, chance: random.Random) -> bool:
        jobs = running(project, controller)
        if jobs:
            number = chance.choice(jobs).id
            with contextlib.suppress(RuntimeError):  # it has just ended
                getattr(project.cluster, what)(number)
        return bool(jobs)

    return happen


def kill_snakemake(project: ClusterProject, chance: random.Random) -> bool:
    process = processes_of(project).get("snakemake")
    if process:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return process is not None


def restart(daemon: str) -> Callable[[ClusterProject, random.Random], bool]:
    """Return an accident: a daemon is killed and started again; a node's is any node's."""

    def happen(project: ClusterProject, chance: random.Random) -> bool:
        name = daemon if daemon == "slurmctld" else f"n{chance.randint(1, 4)}"
        project.cluster.restart(name, signal.SIGKILL)
        return True

    return happen


ACCIDENTS: dict[str, Callable[[ClusterProject, random.Random], bool]] = {
    "SIGKILL to training": hit_process(signal.SIGKILL),
    "SIGTERM to training": hit_process(signal.SIGTERM),
    "job cancelled": hit_job("cancel"),
    "job requeued": hit_job("requeue"),
    "slurmctld restarted": restart("slurmctld"),
    "slurmd restarted": restart("slurmd"),
    "controller requeued": hit_job("requeue", controller=True),
    "controller cancelled": hit_job("cancel", controller=True),
    "Snakemake killed": kill_snakemake,
}


@pytest.fixture
def project(tmp_path) -> Iterator[ClusterProject]:
    """The study on a cluster of its own."""
    if lack := missing():
        pytest.skip(lack)
    (tmp_path / "study").mkdir()
    write_project(tmp_path / "study").write_study(**WHOLE)
    with Cluster(nodes=4) as cluster:
        project = ClusterProject(tmp_path / "study", cluster=cluster)
        yield project
        launch(project, "--cancel")
        project.close()


@pytest.fixture
def undisturbed(tmp_path) -> Project:
    """The same study, run on this machine without SLURM."""
    (tmp_path / "undisturbed").mkdir()
    project = write_project(tmp_path / "undisturbed")
    project.write_study(**WHOLE)
    run = project.snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    return project


def disturb(project: ClusterProject) -> tuple[Counter[str], float]:
    """Run the study to its end under accidents, as a user who starts a dead controller again.

    Returns:
        The accidents, and for how many seconds there were any: until SECONDS, or the study's end.
    """
    chance, met = random.Random(SEED), Counter[str]()
    start = time.monotonic()
    following = start + chance.uniform(10, 20)
    while "the study is finished" not in said(project):
        if not any(job.name == "tiny-controller" for job in project.jobs()):
            launch(project, *OPTIONS)
        now = time.monotonic()
        if following <= now < start + SECONDS:
            name = chance.choice(list(ACCIDENTS))
            if ACCIDENTS[name](project, chance):
                met[name] += 1
                print(f"{now - start:6.1f} s  {name}", flush=True)
            following = now + chance.uniform(10, 20)
        project.cluster.mend()
        time.sleep(1)
    return met, min(SECONDS, time.monotonic() - start)


def assert_same_bytes(project: Project, undisturbed: Project) -> None:
    """Check that the result columns of all tables, and all weights, are those of the other run."""
    files = {
        path.relative_to(undisturbed.results): path
        for pattern in ("[!.]*.parquet", "[!.]*.safetensors")
        for path in undisturbed.results.rglob(pattern)
        if path.name != "originals.parquet"  # which has the times of the originals
    }
    assert len(files) > 30
    for name, path in files.items():
        if path.suffix == ".parquet":
            ours, theirs = (pq.read_table(p) for p in (project.results / name, path))
            assert ours.replace_schema_metadata(None).equals(theirs.replace_schema_metadata(None))
        else:
            weights, expected = (load_file(p) for p in (project.results / name, path))
            assert weights.keys() == expected.keys()
            assert all(weights[key].tobytes() == expected[key].tobytes() for key in weights), name


def half_done(project: Project) -> list[Path]:
    """Return what jobs leave while they are at work."""
    return [
        path
        for path in project.results.rglob("*")
        if path.name == ".partial" or "claim-" in path.name or path.name.startswith("..")
        # Of those who ran the study and were killed the last one's claim stays.
        if path.parent.name != "launch"
    ]


def test_a_study_under_accidents_is_the_study_without_them(project, undisturbed):
    everything = project.planned()
    met, lasted = disturb(project)
    print(*(f"{count:4d}  {name}" for name, count in sorted(met.items())), sep="\n")
    assert sum(met.values()) >= lasted / 30
    assert_same_bytes(project, undisturbed)
    assert half_done(project) == []
    assert len(list((project.results / "launch").glob("*.claim-*"))) <= 2
    assert [job for job in project.jobs() if job.name != "tiny-controller"] == []
    assert_all_on_record(project)
    assert_change_plans_all_training(project, WHOLE, everything)
