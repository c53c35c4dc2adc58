"""The studies that come along say what was published."""

from pathlib import Path
from typing import Any

import pytest

from transfer_influence.config.dataset import describe_dataset
from transfer_influence.config.recipe import Augmentation, TargetRecipe
from transfer_influence.config.study import Study, read_study
from transfer_influence.subsets import block_models

CONFIG = Path(__file__).parents[2] / "config"
CENTRE, RANDOM = "center", "random_resized"
CYCLIC = {"kind": "cyclic", "peak_epoch": 5}

# target: epochs, peak rate, accuracy, crop of training images, share kept by crops, schedule
PUBLISHED: dict[str, tuple[int, float, str, str, float, dict[str, Any]]] = {
    "aircraft": (24, 0.3, "per_class", CENTRE, 224 / 256, CYCLIC),
    "birdsnap": (15, 0.3, "overall", RANDOM, 224 / 256, CYCLIC),
    "caltech101": (24, 0.2, "per_class", CENTRE, 224 / 256, CYCLIC),
    "caltech256": (14, 0.2, "per_class", CENTRE, 224 / 256, CYCLIC),
    "cifar10": (15, 0.1, "overall", CENTRE, 1, CYCLIC),
    "cifar100": (15, 0.1, "overall", CENTRE, 1, CYCLIC),
    "flowers": (50, 0.15, "per_class", CENTRE, 224 / 256, CYCLIC),
    "food": (15, 0.1, "overall", CENTRE, 224 / 256, {"kind": "step", "every": 5, "factor": 0.1}),
    "imagenet": (
        15,
        0.01,
        "overall",
        CENTRE,
        224 / 256,
        {"kind": "step", "every": 10, "factor": 0.1},
    ),
    "pets": (24, 0.1, "per_class", RANDOM, 224 / 256, CYCLIC),
    "stanford_cars": (50, 0.3, "overall", RANDOM, 224 / 256, CYCLIC),
    "sun397": (24, 0.2, "overall", RANDOM, 224 / 256, CYCLIC),
}
MORE = {
    "chestxray14": (4, 0.01, "per_class", CENTRE, 224 / 256, {**PUBLISHED["food"][-1]}),
    **dict.fromkeys(("cifar10_10", "cifar10_25", "cifar10_50"), PUBLISHED["cifar10"]),
}


def shipped(*names: str) -> Study:
    """The study of some files."""
    return read_study([CONFIG / name for name in names])


@pytest.fixture(scope="module")
def paper() -> Study:
    return shipped("paper-exact.yaml")


@pytest.fixture(scope="module")
def more() -> Study:
    return shipped("paper-exact.yaml", "paper-more-targets.yaml")


def test_the_demo_is_a_study():
    assert shipped("demo.yaml").study == "demo"


def test_the_study_of_the_paper_has_its_models_targets_and_removals(paper):
    assert (paper.study, paper.models, paper.source.dataset) == ("paper-exact", 7540, "imagenet")
    assert paper.source.subset.size(1000) == 500
    assert paper.source.architecture.name == "resnet18"
    assert paper.transfers == [
        (name, mode)
        for name in PUBLISHED
        for mode in (["fixed"] if name == "imagenet" else ["fixed", "full"])
    ]
    assert paper.counterfactuals.counts == list(range(0, 951, 50))
    assert paper.counterfactuals.orders == ["top", "bottom"]
    assert (paper.counterfactuals.replicates, paper.proof_fraction) == (1, 0)
    assert paper.least_units <= 1000
    assert paper.resolutions == {160, 192, 224}


def test_the_study_that_is_tested_has_the_models_of_the_published_one(paper):
    tested = shipped("paper.yaml")
    differ = {"study", "influence", "counterfactuals"}
    assert tested.model_dump(exclude=differ) == paper.model_dump(exclude=differ)
    assert tested.influence.outcome == paper.influence.outcome
    assert tested.counterfactuals.counts == paper.counterfactuals.counts
    assert "random" in tested.counterfactuals.orders
    assert (tested.counterfactuals.replicates, tested.proof_fraction) == (3, 0.5)


def test_the_study_of_examples_is_that_of_the_paper_but_for_its_unit(paper):
    examples = shipped("paper-examples.yaml")
    assert (examples.study, examples.models) == ("paper-examples", 50_000)
    assert examples.source.subset.unit == "example"
    assert examples.source.subset.size(1_281_167) == 640_583
    assert examples.counterfactuals.counts == list(range(0, 1_281_000, 50_000))
    assert examples.least_units <= 1_281_167
    same = {"study", "models", "models_per_job", "source", "counterfactuals"}
    assert examples.model_dump(exclude=same) == paper.model_dump(exclude=same)
    assert examples.source.recipe == paper.source.recipe
    assert examples.counterfactuals.orders == paper.counterfactuals.orders


def test_the_fast_study_is_that_of_the_paper_but_for_subsets_and_frozen_features(paper):
    fast = shipped("paper-fast.yaml")
    assert fast.models == 2 * block_models(1000)
    assert fast.source.recipe == paper.source.recipe
    still = {"batchnorm": "frozen", "augmentation": Augmentation(crop="center", flip=False)}
    for name, target in paper.targets.items():
        assert fast.targets[name].modes == ["fixed"]
        assert fast.targets[name].recipe == target.recipe.model_copy(update=still)
        if "full" in target.modes:
            assert fast.targets[f"{name}_full"].recipe == target.recipe
            assert fast.dataset_of(f"{name}_full") == name
    assert len(fast.transfers) == len(paper.transfers)


@pytest.mark.parametrize(
    "names",
    [
        ["demo.yaml"],
        ["paper.yaml", "paper-more-targets.yaml"],
        ["paper-exact.yaml"],
        ["paper-examples.yaml"],
        ["paper-fast.yaml"],
    ],
)
def test_the_data_sets_of_the_studies_come_along(names):
    for name in shipped(*names).datasets:
        assert describe_dataset(name, [CONFIG / "datasets"])


def test_the_source_recipe_is_the_published_one(paper):
    recipe = paper.source.recipe
    assert recipe.model_dump(exclude={"loader", "evaluate_every", "validation_fraction"}) == {
        "epochs": 16,
        "batch_size": 1024,
        "learning_rate": 0.5,
        "momentum": 0.9,
        "weight_decay": 5e-5,
        "weight_decay_norm": None,
        "label_smoothing": 0.0,
        "class_weights": "none",
        "schedule": {"kind": "cyclic", "peak_epoch": 2},
        "resolution": {
            "start": 160,
            "end": 192,
            "start_epoch": 11,
            "end_epoch": 13,
            "multiple": 32,
        },
        "test_resolution": 224,
        "upsample_to": None,
        "test_crop": 224 / 256,
        "augmentation": {"crop": "random_resized", "padding": 4, "flip": True},
        "precision": "float16",
        "keep": "last",
    }


@pytest.mark.parametrize("target", [*PUBLISHED, *MORE])
def test_a_target_recipe_is_the_published_one(more, target):
    epochs, rate, accuracy, crop, share, schedule = (PUBLISHED | MORE)[target]
    recipe = more.targets[target].recipe
    assert isinstance(recipe, TargetRecipe)
    found = recipe.model_dump(exclude={"loader", "evaluate_every", "validation_fraction"})
    chest = target == "chestxray14"
    assert found == {
        "epochs": epochs,
        "batch_size": 1024,
        "learning_rate": rate,
        "momentum": 0.9,
        "weight_decay": 1e-5 if chest else 5e-4,
        "weight_decay_norm": None,
        "label_smoothing": 0.0,
        "class_weights": "balanced" if chest else "none",
        "schedule": schedule,
        "resolution": 32 if target.startswith("cifar") else 224,
        "upsample_to": 224 if target.startswith("cifar") else None,
        "test_resolution": None,
        "test_crop": share,
        "augmentation": {"crop": crop, "padding": 4, "flip": True},
        "precision": "float16",
        "keep": "last",
        "batchnorm": "train",
        "accuracy": accuracy,
        "head": {"solver": "sgd", "l2": 0.01},
    }
    assert recipe.network_resolutions == {224}


def test_what_a_published_run_used_is_said_and_not_left_to_defaults(more):
    for target in more.targets.values():
        assert {"batchnorm", "accuracy", "precision", "test_crop"} <= target.recipe.model_fields_set


def test_more_targets_join_those_of_the_paper_and_change_nothing_else(paper, more):
    assert list(more.targets) == [*PUBLISHED, *MORE]
    assert more.model_dump(exclude={"targets"}) == paper.model_dump(exclude={"targets"})
    assert {name: more.targets[name] for name in PUBLISHED} == paper.targets
    assert all(more.targets[name].modes == ["fixed", "full"] for name in MORE)
