"""Surrogates through the real DAG: a target that copies one source class."""

import numpy as np
import pandas as pd
import pytest

from tests.workflow.conftest import RECIPE, Project
from transfer_influence.subsets import unpack

pytestmark = pytest.mark.timeout(900)

TWIN = 3  # the source class that the target copies
METHODS = [
    *("feature_similarity", "nearest_neighbours", "label_mapping", "feature_mapping"),
    *("leep", "logme", "h_score", "trak"),
]


def write_twin(project: Project) -> None:
    """A target of two classes: the very images of source class 3, and mixtures of two others."""
    digits = np.load(project.folder / "digits.npz")
    images, labels = digits["train_images"], digits["train_labels"]
    copies = images[labels == TWIN]
    others = np.random.default_rng(0).permutation(images[labels != TWIN])[: 2 * len(copies)]
    mixtures = others[::2] // 2 + others[1::2] // 2
    np.savez(
        project.folder / "twin.npz",
        images=np.concatenate([copies, mixtures]),
        labels=np.repeat([0, 1], len(copies)),
    )
    split = {"train_per_class": 20}
    settings = {"kind": "arrays", "source": "twin.npz", "maximum": 16, "split": split}
    project.write_dataset("twin", settings)
    (project.folder / "twin-by-name.txt").write_text("3\n8\n5\n")


def write_study(project: Project) -> None:
    recipe = {**RECIPE, "epochs": 12}
    project.write_study(
        models=16,
        models_per_job=16,
        source={
            "dataset": "digits",
            "architecture": {"name": "small_resnet", "width": 8},
            "recipe": recipe,
        },
        targets={"twin": {"modes": ["fixed"], "recipe": RECIPE}},
        surrogates={
            "methods": METHODS,
            "lists": {"by_name": "{target}-by-name.txt"},
            "checkpoints": 2,
            "projection": 64,
        },
        counterfactuals={
            "orders": ["top", "random", "label_mapping"],
            "counts": [1],
            "replicates": 2,
        },
    )


def test_the_class_that_a_target_copies_is_first_and_is_removed_first(project: Project):
    write_twin(project)
    write_study(project)
    run = project.snakemake("results/tiny/report/surrogates.svg")
    assert run.returncode == 0, run.stdout + run.stderr
    folder = project.results / "surrogates" / "twin"
    for name in [*METHODS, "by_name"]:
        ranking = pd.read_parquet(folder / "fixed" / f"{name}.parquet")
        assert list(ranking)[:4] == ["rank", "unit", "name", "influence"]
        assert sorted(ranking["unit"]) == list(range(10))
        assert ranking["unit"].iloc[0] == TWIN, name
    table = pd.read_parquet(folder / "fixed.parquet").set_index("surrogate")
    assert list(table.index) == ["influences", *METHODS, "by_name"]
    assert table["correlation"].iloc[1:].between(-1, 1).all()
    assert (table["hours"].drop("by_name") > 0).all()
    assert table.loc["by_name", "hours"] == 0
    assert table["area"].notna().sum() == 2  # top and label_mapping
    removed = project.results / "counterfactuals/sources/twin-fixed-label_mapping-1-0.parquet"
    for mask in pd.read_parquet(removed)["mask"]:
        assert np.flatnonzero(~unpack([mask], 10)[0]).tolist() == [TWIN]
    again = project.snakemake("--dry-run", "results/tiny/report/surrogates.svg")
    assert "Nothing to be done" in again.stdout + again.stderr
