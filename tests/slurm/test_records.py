"""Results of jobs that finished while the controller was away go stale as all others do."""

import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.slurm.cluster import Cluster, wait_for
from tests.slurm.conftest import SLOW, SOON, ClusterProject
from tests.slurm.controllers import all_in_training, launch, launched, must_go, said
from tests.slurm.records import assert_all_on_record, assert_change_plans_all_training
from tests.workflow.conftest import RECIPE, write_project

pytestmark = pytest.mark.timeout(1800)

STUDY = {
    "models": 32,
    "models_per_job": 8,
    "source": SLOW["source"],
    "targets": {"photos": {"modes": ["fixed"], "recipe": RECIPE}},
    "counterfactuals": {"orders": ["top"], "counts": [0, 2], "replicates": 2},
}
SHARDS = [f"{first:06d}-{first + 7:06d}" for first in range(0, 32, 8)]


@pytest.fixture
def project(cluster: Cluster, tmp_path) -> Iterator[ClusterProject]:
    """A small study with counterfactuals; nothing has run yet, and no controller is left."""
    write_project(tmp_path).write_study(**STUDY)
    with closing(ClusterProject(tmp_path, cluster=cluster)) as project:
        yield project
        launch(project, "--cancel")


def test_results_that_finished_unseen_are_on_record_and_go_stale(project):
    everything = project.planned()
    launched(project, "--patience", "60", "--", *SOON)
    with all_in_training(project, *SHARDS):
        must_go(project)
        wait_for(lambda: "job(s) of an earlier run" in said(project), 120, "its second life")
    wait_for(lambda: "the study is finished" in said(project), 900, "the study to end")
    assert "(Rule: train_sources)" not in said(project)  # no Snakemake saw them finish
    assert_all_on_record(project)
    assert_change_plans_all_training(project, STUDY, everything)
    shutil.rmtree(project.folder / ".snakemake" / "metadata")
    assert project.planned() == set()
    assert_change_plans_all_training(project, STUDY, everything)
