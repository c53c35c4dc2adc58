"""Mistakes in config and data: one clear sentence, before work is spent."""

import numpy as np
import pytest
from PIL import Image

from tests.workflow.conftest import RECIPE, STUDY

SOURCE = STUDY["source"]


def sentence(project) -> str:
    """Return what a failing run says, on one line; it is to train, for which it converts first."""
    run = project.snakemake("results/tiny/sources/000000-000003.parquet")
    assert run.returncode != 0
    assert "Traceback" not in run.stdout + run.stderr
    assert not list(project.results.glob("sources/*")), "work was spent before the mistake was seen"
    return " ".join((run.stdout + run.stderr).split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modles": 3}, "config/tiny.yaml: modles: unknown key (did you mean 'models'?)"),
        (
            {"targets": {"nowhere": {"modes": ["fixed"], "recipe": RECIPE}}},
            "data set 'nowhere': no nowhere.yaml in config/datasets",
        ),
        (
            {"targets": {"photos": {"modes": ["fixed", "fixed"], "recipe": RECIPE}}},
            "targets.photos.modes: 'fixed' is named twice",
        ),
        (
            {"source": {**SOURCE, "subset": {"count": 10}}},
            "data set 'digits': 10 classes, but the study needs at least 11",
        ),
        (
            {"counterfactuals": {"counts": [0, 10]}},
            "data set 'digits': 10 classes, but the study needs at least 12",
        ),
        (
            {"counterfactuals": {"counts": [0, 2], "lists": {"round": "nowhere.txt"}}},
            "nowhere.txt: no such file; correct the path",
        ),
    ],
    ids=[
        "unknown key",
        "unknown target",
        "mode twice",
        "subset too large",
        "all classes removed",
        "no list",
    ],
)
def test_bad_config(project, changes, said):
    project.write_study(**changes)
    assert said in sentence(project)


def test_no_folder_of_images(project):
    project.write_dataset("digits", {"kind": "folder", "train": "nothing", "test": "nothing"})
    project.write_dataset("held_out", {"kind": "arrays", "source": "nowhere.npz"})
    assert (
        "2 data sets are missing: "
        "digits: no nothing (`train`), no nothing (`test`); see config/datasets/digits.yaml "
        "held_out: no nowhere.npz (`source`); see config/datasets/held_out.yaml Download each"
    ) in sentence(project)


def test_no_images(project):
    for name in ("one", "two"):
        (project.folder / "empty" / name).mkdir(parents=True)
    project.write_dataset("digits", {"kind": "folder", "train": "empty", "test": "empty"})
    assert "digits.yaml: empty/one holds no images; add some" in sentence(project)


def test_a_network_that_cannot_take_the_images(project):
    project.write_study(source={**SOURCE, "architecture": {"name": "vit_b_16"}})
    assert "recipe.resolution: vit_b_16 cannot take images of 8 pixels" in sentence(project)


def test_one_class(project):
    (project.folder / "one" / "only").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(project.folder / "one" / "only" / "0.png")
    project.write_dataset("digits", {"kind": "folder", "train": "one", "test": "one"})
    assert "two are needed" in sentence(project)


def test_an_unreadable_image_is_named(project):
    broken = next((project.folder / "photos").rglob("*.png"))
    broken.write_bytes(broken.read_bytes()[:50])
    project.write_dataset(
        "digits", {"kind": "folder", "train": "photos", "split": {"train_per_class": 20}}
    )
    assert str(broken.relative_to(project.folder)) in sentence(project)
