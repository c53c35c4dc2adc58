"""The data sets of the published study: missing, as empty stand-ins, and converted before."""

import pytest

from tests.workflow.conftest import CHECKOUT, RECIPE, STUDY
from transfer_influence.config.dataset import find_dataset

pytestmark = pytest.mark.timeout(900)

NAMES = ["imagenet", "aircraft", "birdsnap", "caltech256", "cifar10_10", "stanford_cars"]
NAMES += ["sun397", "chestxray14"]
TARGETS = {name: {"modes": ["fixed"], "recipe": RECIPE} for name in NAMES}


def test_what_is_missing_is_said_at_once_and_stand_ins_are_enough_to_plan(project):
    project.write_study(source={**STUDY["source"], "dataset": "imagenet"}, targets=TARGETS)
    run = project.snakemake("--dry-run")
    said = " ".join((run.stdout + run.stderr).split())
    assert run.returncode != 0
    assert "Traceback" not in said
    places = {
        (name, key, place)
        for name in NAMES
        for key, place in find_dataset(name, [CHECKOUT / "config" / "datasets"])[0].places
    }
    assert {name for name, _, _ in places} == set(NAMES) - {"cifar10_10"}
    for name, key, place in places:
        assert f"no {place} (`{key}`)" in said
        assert f"; see {CHECKOUT}/config/datasets/{name}.yaml" in said
    # What has been converted is not asked for.
    sidecar = project.results / "data" / "sun397" / "dataset.json"
    sidecar.parent.mkdir(parents=True)
    sidecar.touch()
    run = project.snakemake("--dry-run")
    said = run.stdout + run.stderr
    assert "data/imagenet" in said
    assert "data/sun397" not in said
    sidecar.unlink()
    for _, _, place in places:
        (project.folder / place).mkdir(parents=True, exist_ok=True)
    planned = project.planned()
    assert {f"Convert the images of {name}" for name in NAMES} <= planned
