"""A controller that goes at its time limit while jobs run leaves no result without a record."""

import shutil
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.conftest import SOON, ClusterProject
from tests.slurm.controllers import (
    all_in_training,
    launch,
    launched,
    must_go,
    processes_of,
    said,
)
from tests.slurm.records import assert_all_on_record, assert_change_plans_all_training
from tests.workflow.conftest import RECIPE, STUDY, write_project

# A whole study runs, a job of a few seconds after another.
pytestmark = pytest.mark.timeout(1200)

SHARDS = [f"{first:06d}-{first + 3:06d}" for first in range(0, 16, 4)]
WHOLE = {
    **STUDY,
    "models": 16,
    "models_per_job": 4,
    "source": {**STUDY["source"], "recipe": {**RECIPE, "epochs": 20}},
    "targets": {"held_out": STUDY["targets"]["held_out"]},
    "counterfactuals": {"orders": ["top"], "counts": [0, 2], "replicates": 2},
}
TRAINING = ("train_sources", "transfer", "counterfactual_source", "counterfactual_transfer")
ONE_CORE = [f"{rule}=1" for rule in TRAINING]
OPTIONS = ("--patience", "60", "--", "--set-threads", *ONE_CORE, *SOON)


@pytest.fixture
def project(cluster, tmp_path) -> Iterator[ClusterProject]:
    """A whole study on the cluster; nothing has run yet."""
    write_project(tmp_path)
    project = ClusterProject(tmp_path, cluster=cluster)
    project.write_study(**WHOLE)
    yield project
    launch(project, "--cancel")
    project.close()


def let_jobs_finish_without_a_snakemake(project: ClusterProject) -> None:
    """End the controller as its time limit does, and let its jobs run on only after that."""
    with all_in_training(project, *SHARDS):
        must_go(project)
        wait_for(lambda: "stops here and will be started" in said(project), 60, "the signal")
        wait_for(lambda: "snakemake" not in processes_of(project), 120, "Snakemake to end")
    wait_for(lambda: "waits for" in said(project), 120, "the controller's second life")


def test_a_study_whose_controller_was_away_misses_no_changed_setting(project):
    everything = project.planned()
    launched(project, *OPTIONS)
    let_jobs_finish_without_a_snakemake(project)
    wait_for(lambda: "the study is finished" in said(project), 900, "the study to end")
    assert_all_on_record(project)
    assert_change_plans_all_training(project, WHOLE, everything)
    shutil.rmtree(project.folder / ".snakemake" / "metadata")
    assert_change_plans_all_training(project, WHOLE, everything)
