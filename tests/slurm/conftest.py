"""A SLURM cluster for all tests of this folder, and studies that run on it."""

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
from safetensors.numpy import load_file

from tests.slurm.cluster import Cluster, Job, missing, wait_for
from tests.workflow.conftest import CHECKOUT, RECIPE, STUDY, Project, write_project
from transfer_influence.config.study import shard_models

# About 2 s a model, and 6 s a shard: slow enough to be hit in the middle of one.
SLOW = {
    "models": 24,
    "models_per_job": 3,
    "source": {**STUDY["source"], "recipe": {**RECIPE, "epochs": 60}},
}
SHARDS = [f"{first:06d}-{first + 2:06d}" for first in range(0, 24, 3)]
# Jobs take seconds here: ask for their states early.
SOON = ("--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "10")
WAITING_OR_RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED"}


class Controller:
    """A Snakemake in the background, in a process group of its own; its output goes to a file."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / f"controller-{len(list(folder.glob('controller-*.log')))}.log"
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
        """Wait for its end, and return its exit status."""
        return self._process.wait(seconds)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it and to the commands that it runs on this machine."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once; its jobs go on."""
        if self.running:
            self.send(signal.SIGKILL)
        self._process.wait()


@dataclass(frozen=True)
class ClusterProject(Project):
    """A user's folder on a cluster."""

    cluster: Cluster
    controllers: list[Controller] = field(default_factory=list)

    def start(self, *arguments: str) -> Controller:
        """Start Snakemake on the study, with the profile for SLURM, in the background."""
        profile = str(CHECKOUT / "profiles" / "slurm")
        command = self.command("--workflow-profile", profile, *SOON, *arguments)
        self.controllers.append(Controller(command, self.folder, self.cluster.environment))
        return self.controllers[-1]

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
        """End all controllers and all jobs."""
        for controller in self.controllers:
            controller.kill()
        if jobs := self.jobs():
            self.cluster.cancel(*(job.id for job in jobs))
            wait_for(lambda: not self.jobs(), 60, "cancelled jobs to end")


def assert_same_results(project: Project, undisturbed: Project, shard: str) -> None:
    """Check that the models of a shard are the same to the last bit as in the undisturbed run."""
    table, weights = read_shard(project.results / "sources" / f"{shard}.parquet")
    (reference,) = (undisturbed.results / "sources").glob("[!.]*.parquet")
    all_models, all_weights = read_shard(reference)
    models = list(shard_models(shard))
    assert table["model"].to_pylist() == models
    assert table.equals(all_models.take(models))
    assert set(weights) == {key for key in all_weights if int(key.partition("/")[0]) in models}
    for key, tensor in weights.items():
        assert tensor.tobytes() == all_weights[key].tobytes(), key


def read_shard(table: Path) -> tuple[pa.Table, dict[str, np.ndarray]]:
    """Read the result columns and the weights of a shard of source models."""
    columns = pq.read_table(table).replace_schema_metadata(None)
    return columns, load_file(table.with_suffix(".safetensors"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster with the default nodes; leave it as you found it."""
    if lack := missing():
        pytest.skip(lack)
    with Cluster() as started:
        yield started


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Project:
    """The slow study, whose source models were trained on this machine without SLURM."""
    project = write_project(tmp_path_factory.mktemp("undisturbed"))
    # In one shard, as that changes no model.
    project.write_study(**{**SLOW, "models_per_job": SLOW["models"]})
    run = project.snakemake(f"results/tiny/sources/000000-{SLOW['models'] - 1:06d}.parquet")
    assert run.returncode == 0, run.stdout + run.stderr
    return project


@pytest.fixture
def project(cluster, tmp_path) -> Iterator[ClusterProject]:
    """The slow study on the cluster; nothing has run yet."""
    write_project(tmp_path).write_study(**SLOW)
    project = ClusterProject(tmp_path, cluster)
    yield project
    project.close()


@pytest.fixture(scope="module")
def converted(cluster, undisturbed, tmp_path_factory) -> Iterator[ClusterProject]:
    """The slow study on the cluster; its data sets are converted, and nothing else has run."""
    folder = tmp_path_factory.mktemp("converted") / "project"
    shutil.copytree(undisturbed.folder, folder)
    shutil.rmtree(folder / "results" / "tiny" / "sources")
    project = ClusterProject(folder, cluster)
    project.write_study(**SLOW)
    yield project
    project.close()
