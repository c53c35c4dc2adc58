"""A study under random accidents for ten minutes: what it leaves is what an undisturbed run leaves.

Not part of everyday tests: pytest -s -m soak tests/slurm/test_soak.py. Two variables of the
environment choose the accidents and how long they go on.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster, Job, missing, wait_for
from tests.slurm.conftest import SLOW, SOON, BackgroundProgram, ClusterProject
from tests.slurm.controllers import launch_command, must_go, processes_of, said
from tests.slurm.records import assert_all_on_record, assert_change_plans_all_training
from tests.workflow.conftest import CHECKOUT, Project, write_project

SEED = int(os.getenv("TRANSFER_INFLUENCE_SOAK_SEED", "0"))
SECONDS = float(os.getenv("TRANSFER_INFLUENCE_SOAK_SECONDS", "600"))
PAUSE = (10.0, 20.0)  # seconds between two accidents, at least and at most
CALM = 3600.0  # seconds that the study may take when the accidents are over

pytestmark = [pytest.mark.soak, pytest.mark.timeout(SECONDS + 2 * CALM)]

# So many models that two cores are not done before the accidents are over.
STUDY = {
    "models": 4 * max(4, round(SECONDS / 40)),
    "models_per_job": 4,
    "source": SLOW["source"],
}
TRAINING = ("train_sources", "transfer", "counterfactual_source", "counterfactual_transfer")
CONTROLLER = "tiny-controller"
# What a writer that is killed leaves; finished files have a longer digest in their second names.
HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}\.\w+")


@dataclass
class Soak:
    """A study under accidents.

    Attributes:
        project: where it runs.
        dice: decide what happens to whom.
        begun: when it was started.
        happened: how often each accident happened.
        launching: starts a controller, until it has.
    """

    project: ClusterProject
    dice: random.Random = field(default_factory=lambda: random.Random(SEED))
    begun: float = field(default_factory=time.monotonic)
    happened: Counter[str] = field(default_factory=Counter)
    launching: BackgroundProgram | None = None

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.begun:6.0f} s  {text}", flush=True)

    @property
    def finished(self) -> bool:
        return "the study is finished" in said(self.project)

    def running(self, *, controllers: bool) -> list[Job]:
        """Return the controllers that run, or the jobs that they have submitted and that run."""
        return [
            job
            for job in self.project.jobs()
            if job.state == "RUNNING" and (job.name == CONTROLLER) == controllers
        ]

    def training(self) -> list[int]:
        """Return the processes that train models."""
        scripts = {str(CHECKOUT / "scripts" / f"{name}.py") for name in TRAINING}
        found = []
        for pid in self.project.cluster.pids():
            with contextlib.suppress(psutil.Error):
                if scripts & set(psutil.Process(pid).cmdline()[1:2]):
                    found.append(pid)
        return sorted(found)

    def happen(self) -> None:
        """Let one of the accidents happen that find a victim."""
        for name in self.dice.sample(list(ACCIDENTS), len(ACCIDENTS)):
            if victim := ACCIDENTS[name](self):
                self.happened[name] += 1
                self.say(f"{name}: {victim}")
                return

    def look_after(self) -> None:
        """Do what people do: mend the cluster, and start a controller that is gone."""
        for mended in self.project.cluster.mend():
            self.say(mended)
        if self.launching:
            if self.launching.running:
                return
            self.say(f"launch.py: {' '.join(self.launching.output.split())}")
            self.launching = None
        if not self.finished and not any(job.name == CONTROLLER for job in self.project.jobs()):
            command = launch_command("--patience", "60", "--", *SOON)
            self.launching = self.project.in_background(command)

    def table(self) -> str:
        """Return how often each accident happened."""
        rows = [f"{name:40}{self.happened[name]:5}" for name in ACCIDENTS]
        return "\n".join([*rows, f"{'all accidents':40}{self.happened.total():5}"])


def signalled(number: signal.Signals) -> Callable[[Soak], str]:
    """Return the accident that a training process gets a signal."""

    def happen(soak: Soak) -> str:
        if not (pids := soak.training()):
            return ""
        pid = soak.dice.choice(pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return f"process {pid}"

    return happen


def to_a_job(act: Callable[[Cluster, int], None], *, controllers: bool) -> Callable[[Soak], str]:
    """Return the accident that something is done to a running job."""

    def happen(soak: Soak) -> str:
        if not (jobs := soak.running(controllers=controllers)):
            return ""
        job = soak.dice.choice(jobs)
        with contextlib.suppress(RuntimeError):  # it has just ended
            act(soak.project.cluster, job.id)
        return f"job {job.id} {job.comment}"

    return happen


def restart_the_controller_of_slurm(soak: Soak) -> str:
    soak.project.cluster.restart("slurmctld", signal.SIGTERM)
    return "slurmctld"


def restart_a_node(soak: Soak) -> str:
    node = soak.dice.choice(soak.project.cluster.nodes)
    soak.project.cluster.restart(node, signal.SIGKILL)
    return f"slurmd of {node}"


def reach_the_time_limit(soak: Soak) -> str:
    if not soak.running(controllers=True):
        return ""
    must_go(soak.project)
    return "the controller"


def kill_snakemake(soak: Soak) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        snakemake = processes_of(soak.project).get("snakemake")
        # The controller holds the claim itself while it waits for jobs of an earlier Snakemake.
        if snakemake and "snakemake" in snakemake.cmdline():
            snakemake.kill()
            return f"process {snakemake.pid}"
    return ""


ACCIDENTS: dict[str, Callable[[Soak], str]] = {
    "SIGKILL to a training process": signalled(signal.SIGKILL),
    "SIGTERM to a training process": signalled(signal.SIGTERM),
    "scancel of a job": to_a_job(Cluster.cancel, controllers=False),
    "scontrol requeue of a job": to_a_job(Cluster.requeue, controllers=False),
    "restart of slurmctld": restart_the_controller_of_slurm,
    "kill and restart of a slurmd": restart_a_node,
    "scancel of the controller": to_a_job(Cluster.cancel, controllers=True),
    "scontrol requeue of the controller": to_a_job(Cluster.requeue, controllers=True),
    "time limit of the controller": reach_the_time_limit,
    "SIGKILL to the controller's Snakemake": kill_snakemake,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Project:
    """The study after a run on this machine without SLURM."""
    project = write_project(tmp_path_factory.mktemp("soak-undisturbed"))
    project.write_study(**STUDY)
    run = BackgroundProgram(project.command("--cores", "2"), project.folder, dict(os.environ))
    try:
        assert run.wait(CALM) == 0, run.output
    finally:
        run.kill()
    return project


@pytest.fixture(scope="module")
def everything(undisturbed, tmp_path_factory) -> set[str]:
    """The jobs of the study when nothing has run."""
    project = write_project(tmp_path_factory.mktemp("soak-everything"))
    project.write_study(**STUDY)
    return project.planned()


@pytest.fixture(scope="module")
def soaked(undisturbed, tmp_path_factory) -> Iterator[ClusterProject]:
    """The study after its accidents, run to its end."""
    if lack := missing():
        pytest.skip(lack)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = tmp_path_factory.mktemp("soak") / "project"
    # Times and all, as the record of the images holds them.
    made = shutil.ignore_patterns("results", ".snakemake", "*.log")
    shutil.copytree(undisturbed.folder, folder, ignore=made)
    with Cluster(nodes=4) as cluster:
        project = ClusterProject(folder, cluster=cluster)
        run_under_accidents(Soak(project))
        yield project


def run_under_accidents(soak: Soak) -> None:
    """Run a study to its end; print every accident, and how many there were."""
    print(f"\nTRANSFER_INFLUENCE_SOAK_SEED={SEED} TRANSFER_INFLUENCE_SOAK_SECONDS={SECONDS:g}")
    next_one = PAUSE[1]
    while (now := time.monotonic() - soak.begun) < SECONDS and not soak.finished:
        soak.look_after()
        if now > next_one:
            soak.happen()
            next_one = now + soak.dice.uniform(*PAUSE)
        time.sleep(1)
    soak.say("no more accidents")
    deadline = time.monotonic() + CALM
    while not soak.finished:
        assert time.monotonic() < deadline, said(soak.project)[-5000:]
        time.sleep(5)
        soak.look_after()
    soak.say("the study is finished")
    print(soak.table(), flush=True)


def result_files(project: Project) -> list[Path]:
    """Return the tables and weights of a study, relative to its folder."""
    found = [*project.results.rglob("*.parquet"), *project.results.rglob("*.safetensors")]
    relative = (path.relative_to(project.results) for path in found)
    return sorted(path for path in relative if not any(part[0] == "." for part in path.parts))


def test_results_are_those_of_an_undisturbed_run(soaked, undisturbed):
    files = result_files(soaked)
    assert files == result_files(undisturbed)
    for file in files:
        ours, theirs = soaked.results / file, undisturbed.results / file
        if file.suffix == ".parquet":
            tables = [pq.read_table(path).replace_schema_metadata(None) for path in (ours, theirs)]
            assert tables[0].equals(tables[1]), file
        else:
            weights, expected = load_file(ours), load_file(theirs)
            assert weights.keys() == expected.keys(), file
            assert all(weights[key].tobytes() == expected[key].tobytes() for key in weights), file


def test_every_result_is_on_record(soaked):
    assert_all_on_record(soaked)


def test_a_change_plans_all_that_it_should(soaked, everything):
    assert_change_plans_all_training(soaked, STUDY, everything)


def test_nothing_is_left_behind(soaked):
    wait_for(lambda: not soaked.jobs(), 60, "the queue to be empty")
    names = [path for path in soaked.results.rglob("*") if path.parent.name != "launch"]
    assert not [path for path in names if path.name == ".partial"]
    assert not [path for path in names if ".claim-" in path.name]
    assert not [path for path in names if HALF_WRITTEN.fullmatch(path.name)]
    assert processes_of(soaked) == {}
    wait_for(lambda: not processes_in(soaked), 30, "all processes to end")


def processes_in(project: ClusterProject) -> list[int]:
    """Return the processes that work in a project's folder."""
    found = []
    for pid in project.cluster.pids():
        with contextlib.suppress(OSError):  # it has just ended
            if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(project.folder):
                found.append(pid)
    return found
