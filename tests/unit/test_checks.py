"""What is wrong between a study and its files is said before any job, all of it at once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import random_images, write_settings
from tests.conftest import recipe_values

from transfer_influence import checks
from transfer_influence.checks import StudyFiles, check_files
from transfer_influence.config.study import check_study
from transfer_influence.datasets.conversion import convert
from transfer_influence.errors import UserError
from transfer_influence.results import data_folder
from transfer_influence.subsets import LEAST_BLOCKS, LEAST_GROUPS, block_models

CLASSES = 6
SOURCE = {"dataset": "pictures", "recipe": recipe_values()}
DELETE = " If the data set itself has changed, delete results/small/data/pictures/dataset.json."


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch) -> None:
    """A described data set of six classes, in the working folder."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(4 * CLASSES) % CLASSES
    np.savez(
        "images.npz",
        train_images=random_images(4 * CLASSES, 8, 8),
        train_labels=labels,
        test_images=random_images(4 * CLASSES, 8, 8, seed=1),
        test_labels=labels,
    )
    write_settings(tmp_path / "config", "pictures", kind="arrays", source="images.npz")


def study_files(convert_it: bool = False, **changes: Any) -> StudyFiles:
    values = {
        "study": "small",
        "models": 40,
        "source": SOURCE,
        "targets": {"pictures": {"modes": ["fixed"], "recipe": recipe_values()}},
    }
    study = check_study(values | changes, "mine.yaml")
    folders = (Path("config"),)
    folder = data_folder(study, "pictures")
    if convert_it and not folder.exists():
        convert("pictures", list(folders), folder)
    return StudyFiles(study, folders)


def source(**changes: Any) -> dict[str, Any]:
    return {**SOURCE, **changes}


def bank(models: int) -> dict[str, Any]:
    """A bank with checkpoints of some models, and masks of 40."""
    Path("bank").mkdir()
    for model in range(models):
        Path("bank", f"{model}.pt").touch()
    rows = [np.random.default_rng(row).permutation(CLASSES) < CLASSES // 2 for row in range(40)]
    np.save("masks.npy", np.array(rows))
    return source(checkpoints="bank/{model}.pt", masks="masks.npy")


@pytest.mark.parametrize("converted", [False, True])
def test_nothing_is_wrong_with_a_study_whose_files_are_there(converted):
    check_files(study_files(converted))
    check_files(study_files(converted, source=bank(40)))


def test_all_that_is_wrong_is_said_at_once():
    files = study_files(
        source=source(dataset="nowhere"),
        targets={
            "pictures": {"modes": ["fixed"], "recipe": recipe_values()},
            "elsewhere": {"modes": ["fixed"], "recipe": recipe_values()},
        },
        counterfactuals={"counts": [0, 2], "lists": {"round": "round.txt"}},
    )
    Path("images.npz").unlink()
    with pytest.raises(UserError) as mistake:
        check_files(files)
    lines = str(mistake.value).splitlines()
    assert [line for line in lines if "no nowhere.yaml" in line]
    assert [line for line in lines if "no elsewhere.yaml" in line]
    assert [line for line in lines if "pictures: no images.npz (`source`)" in line]
    assert [line for line in lines if line.startswith("round.txt: no such file")]


def test_data_sets_without_a_description_are_named():
    target = {"modes": ["fixed"], "recipe": recipe_values()}
    files = study_files(targets={"one": target, "pictures": target, "two": target})
    assert [line.split(": no ")[0] for line in checks.descriptions(files)] == [
        "data set 'one'",
        "data set 'two'",
    ]


def test_images_are_asked_for_until_they_are_converted():
    assert list(checks.images(study_files())) == []
    converted = study_files(convert_it=True)
    Path("images.npz").unlink()
    assert list(checks.images(converted)) == []
    Path("results").rename("elsewhere")
    (sentence,) = checks.images(study_files())
    assert sentence.startswith("1 data set is missing:\n  pictures: no images.npz (`source`)")


@pytest.mark.parametrize(
    ("models", "said"),
    [(40, None), (39, "for model 39 of 40; correct"), (37, "model 37, nor for 2 others, of 40;")],
)
def test_a_bank_has_all_checkpoints(models, said):
    found = list(checks.bank(study_files(source=bank(models))))
    assert [said in sentence for sentence in found] == [True] * bool(said)


@pytest.mark.parametrize("shape", [(39, CLASSES), (40, CLASSES + 1)])
def test_a_bank_has_masks_of_all_models_and_units(shape):
    values = bank(40)
    np.save("masks.npy", np.ones(shape, bool))
    (sentence,) = checks.bank(study_files(True, source=values))
    assert f"masks.npy: masks of {shape[0] if shape[0] < 40 else f'{shape[1]} units'}" in sentence
    assert sentence.endswith(DELETE)


def test_lists_name_units_of_the_source():
    Path("round.txt").write_text("0\n3\n")
    Path("kept.txt").write_text("0\n9\n")
    lists = {"round": "round.txt", "wrong": "kept.txt"}
    removed = {"counterfactuals": {"counts": [0, 2], "lists": lists}}
    kept = {"source": source(subset={"keep": "kept.txt"})}
    for values in (removed, kept):
        assert list(checks.lists(study_files(**values))) == []  # the units are not known yet
        (sentence,) = checks.lists(study_files(True, **values))
        assert sentence.startswith("kept.txt: '9' is neither the name of one of")
        assert sentence.endswith(DELETE)
        shutil.rmtree("results")
    Path("round.txt").unlink()
    Path("kept.txt").unlink()
    assert [line.split(";")[0] for line in checks.lists(study_files(**removed))] == [
        "round.txt: no such file",
        "kept.txt: no such file",
    ]
    (sentence,) = checks.lists(study_files(**kept))
    assert sentence == "source.subset: no file kept.txt; correct the path."


def test_a_source_has_enough_units_for_removals():
    removals = {"counterfactuals": {"counts": [0, CLASSES - 1]}}
    assert list(checks.units(study_files(**removals))) == []
    (sentence,) = checks.units(study_files(True, **removals))
    assert sentence.startswith(f"data set 'pictures': {CLASSES} classes, but the study needs")
    assert list(checks.units(study_files(True, counterfactuals={"counts": [0, 4]}))) == []


def test_lasso_has_models_to_hold_out():
    values = {
        "source": source(subset={"sampling": "complement_pairs"}),
        "influence": {"estimators": ["ridge", "lasso"]},
    }
    assert list(checks.design(study_files(models=2 * LEAST_GROUPS, **values))) == []
    (sentence,) = checks.design(study_files(models=2 * LEAST_GROUPS - 2, **values))
    assert sentence.startswith("influence.estimators: lasso cannot hold out some of 6 models")


def test_a_bootstrap_of_balanced_subsets_has_whole_blocks():
    values = {
        "source": source(subset={"sampling": "balanced"}),
        "influence": {"intervals": "bootstrap"},
    }
    whole = LEAST_BLOCKS * block_models(CLASSES)
    assert list(checks.design(study_files(models=8, **values))) == []  # the units are not known yet
    assert list(checks.design(study_files(True, models=whole, **values))) == []
    for models in (whole - block_models(CLASSES), whole + 2):
        (sentence,) = checks.design(study_files(True, models=models, **values))
        assert sentence.startswith(
            "influence.intervals: bootstrap draws blocks of balanced subsets"
        )
        assert sentence.endswith(f"{whole} at least.")


def test_every_unit_is_in_enough_subsets_and_missing_from_enough():
    few = {"models": 6, "source": source(subset={"count": 1})}
    assert list(checks.design(study_files(**few))) == []  # the units are not known yet
    (sentence,) = checks.design(study_files(True, **few))
    assert "of 6 models, but both sides need at least 2; raise `models`" in sentence
    assert list(checks.design(study_files(True, models=40))) == []


def test_needless_draws_are_left_out(monkeypatch):
    def draw(*_: Any) -> np.ndarray:
        raise AssertionError("drawn")

    monkeypatch.setattr(checks, "draw_mask", draw)
    assert list(checks.design(study_files(True, models=100))) == []
    with pytest.raises(AssertionError, match="drawn"):
        list(checks.design(study_files(True, models=20)))


def test_the_masks_of_a_bank_have_both_sides():
    values = bank(40)
    masks = np.load("masks.npy")
    masks[:, 3] = True
    np.save("masks.npy", masks)
    (sentence,) = checks.design(study_files(True, source=values))
    assert sentence.startswith("'3' is in the subsets of 40 of 40 models")
    assert "mend the masks" in sentence


def test_targets_have_what_is_to_be_explained_and_validated():
    values = {"influence": {"outcome": "auroc"}, "counterfactuals": {"counts": [0, 2]}}
    assert list(checks.outcomes(study_files(**values))) == []  # not converted
    (sentence,) = checks.outcomes(study_files(True, **values))
    assert sentence == (
        f"influence.outcome: auroc is for two classes, and target 'pictures' has {CLASSES}; choose "
        f"another outcome."
    )


def test_single_test_images_cannot_be_left_to_prove_the_ranking():
    labels = np.arange(CLASSES)
    images = random_images(2 * CLASSES, 8, 8)
    np.savez(
        "images.npz",
        train_images=images,
        train_labels=np.tile(labels, 2),
        test_images=images[:CLASSES] + 1,
        test_labels=labels,
    )
    (sentence,) = checks.outcomes(study_files(True, counterfactuals={"counts": [0, 2]}))
    assert "no class has two test images" in sentence
    assert sentence.endswith("set counterfactuals.proof_fraction to 0.")
    undivided = {"counts": [0, 2], "proof_fraction": 0}
    assert list(checks.outcomes(study_files(True, counterfactuals=undivided))) == []


def test_single_training_images_cannot_be_validated_by():
    labels = np.arange(CLASSES)
    images = random_images(CLASSES, 8, 8)
    np.savez(
        "images.npz",
        train_images=images,
        train_labels=labels,
        test_images=images + 1,
        test_labels=labels,
    )
    (sentence,) = checks.outcomes(
        study_files(True, counterfactuals={"counts": [0, 2], "proof_fraction": 0})
    )
    assert sentence.startswith("target 'pictures': no class has two training images")
    none = {"counts": [0, 2], "validation_fraction": 0, "proof_fraction": 0}
    assert list(checks.outcomes(study_files(True, counterfactuals=none))) == []


def test_lists_of_surrogates_are_there_for_every_target():
    wanted = {"methods": [], "lists": {"by_name": "{target}.txt"}}
    (sentence,) = checks.lists(study_files(True, surrogates=wanted))
    assert sentence == "pictures.txt: no such file; correct the path."
    Path("pictures.txt").write_text("5\n1\n9\n")
    (sentence,) = checks.lists(study_files(True, surrogates=wanted))
    assert sentence.startswith("pictures.txt: '9' is neither the name of one of the 6 units")


def test_the_network_takes_the_images():
    (sentence,) = checks.network(study_files(source=source(architecture={"name": "vit_b_16"})))
    assert sentence.startswith("recipe.resolution: vit_b_16 cannot take images of")
    assert list(checks.network(study_files())) == []
