"""A SLURM cluster for all tests of this folder, and studies that run on it."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster, Job, missing, wait_for
from tests.workflow.conftest import CHECKOUT, RECIPE, STUDY, Project, write_project
from transfer_influence.config.study import shard_models

# About a second a model and CPU: slow enough to be hit in the middle of one.
SLOW = {
    "models": 24,
    "models_per_job": 3,
    "source": {**STUDY["source"], "recipe": {**RECIPE, "epochs": 40}},
}
SHARDS = [f"{first:06d}-{first + 2:06d}" for first in range(0, 24, 3)]
PROFILE = yaml.safe_load((CHECKOUT / "profiles" / "slurm" / "config.yaml").read_text())
ALL = "000000-000023"
# Jobs take seconds here: ask for their states early.
SOON = ("--slurm-init-seconds-before-status-checks", "3")
WAITING_OR_RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the soak unless it is asked for with -m soak."""
    if "soak" not in config.getoption("markexpr"):
        left_out = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


class BackgroundProgram:
    """A program in the background, in a process group of its own; its output goes to a file."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / f"output-{len(list(folder.glob('output-*.log')))}.log"
        with self.log.open("w") as opened:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Wait for its end, and return its exit status.

        Raises:
            TimeoutExpired: it goes on; the note is its output.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            error.add_note(self.output)
            raise

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to the commands that it runs on this machine."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once; the jobs that it has submitted go on."""
        if self.running:
            self.send(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class ClusterProject(Project):
    """A user's folder on a cluster."""

    cluster: Cluster = field(kw_only=True)
    programs: list[BackgroundProgram] = field(default_factory=list)

    def start(self, *arguments: str) -> BackgroundProgram:
        """Start Snakemake on the study, with the profile for SLURM, in the background."""
        profile = str(CHECKOUT / "profiles" / "slurm")
        command = self.command("--workflow-profile", profile, *SOON, *arguments)
        return self.in_background(command)

    def in_background(self, command: list[str]) -> BackgroundProgram:
        """Start any program in this folder, on this cluster."""
        self.programs.append(BackgroundProgram(command, self.folder, self.cluster.environment))
        return self.programs[-1]

    def sources(self, *shards: str) -> list[str]:
        """Return what to ask Snakemake for: the tables of some shards of source models."""
        return [f"results/tiny/sources/{shard}.parquet" for shard in shards]

    def log(self, shard: str) -> Path:
        """Return the log of a shard of source models."""
        return self.results / "logs" / "train_sources" / f"{shard}.log"

    def jobs(self) -> list[Job]:
        """Return the jobs that were submitted from this folder and are not over."""
        return [
            job
            for job in self.cluster.jobs()
            if job.folder == self.folder and job.state in WAITING_OR_RUNNING
        ]

    def training(self, shard: str) -> int | None:
        """Return the process that trains a shard of source models, if there is one."""
        for pid in self.cluster.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:  # it has just ended
                continue
            # Not the shells and the Snakemakes around it.
            if words[1:2] == [str(CHECKOUT / "scripts" / "train_sources.py")] and shard in words:
                return pid
        return None

    def close(self) -> None:
        """End all programs and all jobs."""
        for program in self.programs:
            program.kill()

        def over() -> bool:
            jobs = self.jobs()
            if jobs:
                self.cluster.cancel(*(job.id for job in jobs))
            return not jobs

        wait_for(over, 60, "cancelled jobs to end")


def assert_same_results(project: Project, undisturbed: Project, shard: str) -> None:
    """Check that the models of a shard are the same to the last bit as in the undisturbed run."""
    table, weights = read_shard(project.results / "sources" / f"{shard}.parquet")
    all_models, all_weights = read_shard(undisturbed.results / "sources" / f"{ALL}.parquet")
    models = list(shard_models(shard))
    assert table["model"].to_pylist() == models
    assert table.equals(all_models.take(models))
    assert set(weights) == {key for key in all_weights if int(key.partition("/")[0]) in models}
    for key, tensor in weights.items():
        assert tensor.tobytes() == all_weights[key].tobytes(), key


def asked_for(resource: str, attempt: int) -> int:
    """Return what the profile has a job that trains a shard of source models ask for."""
    return eval(str(PROFILE["set-resources"]["train_sources"][resource]), {"attempt": attempt})


def read_shard(table: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Read the result columns and the weights of a shard of source models."""
    columns = pq.read_table(table).replace_schema_metadata(None)
    return columns, load_file(table.with_suffix(".safetensors"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster with the default nodes; leave it as you found it."""
    if lack := missing():
        pytest.skip(lack)
    # As Ctrl-C does, so that a pytest that is told to end still stops what it has started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Cluster() as started:
        yield started


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Project:
    """The slow study, whose source models were trained on this machine without SLURM."""
    project = write_project(tmp_path_factory.mktemp("undisturbed"))
    # In one shard, as that changes no model.
    project.write_study(**{**SLOW, "models_per_job": SLOW["models"]})
    command = project.command("--cores", "2", f"results/tiny/sources/{ALL}.parquet")
    run = BackgroundProgram(command, project.folder, dict(os.environ))
    try:
        assert run.wait(800) == 0, run.output
    finally:
        run.kill()
    return project


@pytest.fixture
def project(cluster, tmp_path) -> Iterator[ClusterProject]:
    """The slow study on the cluster; nothing has run yet."""
    write_project(tmp_path).write_study(**SLOW)
    with contextlib.closing(ClusterProject(tmp_path, cluster=cluster)) as project:
        yield project


@pytest.fixture
def converted(cluster, undisturbed, tmp_path) -> Iterator[ClusterProject]:
    """The slow study on the cluster; its source data set is converted, and nothing else has run."""
    with converted_project(cluster, undisturbed, tmp_path / "converted") as project:
        yield project


@contextlib.contextmanager
def converted_project(
    cluster: Cluster, undisturbed: Project, folder: Path
) -> Iterator[ClusterProject]:
    """Yield what `converted` is, for fixtures of a wider scope."""
    shutil.copytree(undisturbed.folder, folder)
    shutil.rmtree(folder / "results" / "tiny" / "sources")
    with contextlib.closing(ClusterProject(folder, cluster=cluster)) as project:
        project.write_study(**SLOW)
        yield project
