import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import CHECKOUT, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import RemovalStage
from transfer_influence.counterfactual.removals import (
    kept_mask,
    matched_order,
    removal_order,
    retrained_models,
)
from transfer_influence.counterfactual.tables import summarize_counterfactual
from transfer_influence.errors import UserError
from transfer_influence.outcomes.rows import Effort
from transfer_influence.outcomes.tables import list_column, matrix, write_table
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.provenance import identity, read_provenance
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import SourceModel, pack, unpack
from transfer_influence.training.trainer import Trainer

CLASSES = 10
NAMES = [f"class {number}" for number in range(CLASSES)]
IMAGES_OF = np.array([10, 20, 90, 5, 40, 30, 5, 80, 10, 60])  # of each class
RANKED = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]  # most helpful first


def stage(
    order: str | None, count: int | None, replicate: int = 0, seed: int = 0, keeps: bool = False
) -> RemovalStage:
    return RemovalStage(
        keeps=keeps,
        seed=seed,
        unit="class",
        order=order,
        count=count,
        replicates=[replicate],
        budget="epochs",
        architecture=Architecture(width=4),
        recipe=Recipe(**recipe_values()),
    )


def only_model(stage: RemovalStage, ranking: Path | None) -> SourceModel:
    (model,) = retrained_models(stage, ranking, NAMES, IMAGES_OF)
    return model


@pytest.fixture
def ranking(tmp_path) -> Path:
    table = pa.table({"rank": range(1, CLASSES + 1), "unit": pa.array(RANKED, pa.int32())})
    write_table(table, tmp_path / "ranking.parquet", "{}")
    return tmp_path / "ranking.parquet"


def removed(
    order: str | None, count: int, ranking: Path | None = None, replicates: int = 4, seed: int = 0
) -> list[list[int]]:
    """What each replicate loses."""
    stages = [stage(order, count, replicate, seed) for replicate in range(replicates)]
    models = [
        model for each in stages for model in retrained_models(each, ranking, NAMES, IMAGES_OF)
    ]
    return [np.flatnonzero(~model.mask).tolist() for model in models]


def test_top_removes_the_most_helpful_and_bottom_the_most_harmful(ranking):
    assert removed("top", 3, ranking) == [[2, 7, 9]] * 4
    assert removed("bottom", 3, ranking) == [[3, 5, 6]] * 4
    assert removed("top", 8, ranking) == [sorted(RANKED[:8])] * 4


def test_the_baseline_removes_nothing():
    assert removed(None, 0) == [[]] * 4


def test_random_removes_other_classes_in_each_replicate_and_study():
    found = removed("random", 4, replicates=20)
    assert all(len(set(classes)) == 4 for classes in found)
    assert len({tuple(classes) for classes in found}) > 15
    assert removed("random", 4, replicates=20) == found
    assert removed("random", 4, replicates=20, seed=1) != found
    assert removed("random", 4, replicates=3) == found[:3]


def test_random_removals_come_from_the_removal_stage_and_never_change():
    seed = stream(5, Stage.REMOVAL, 2)
    expected = np.random.default_rng(seed).permutation(CLASSES)
    found = removal_order(stage("random", 4, seed=5), 2, None, NAMES, IMAGES_OF)
    np.testing.assert_array_equal(found, expected)
    few = removal_order(stage("random", 4), 0, None, NAMES[:6], IMAGES_OF[:6])
    assert few.tolist() == [2, 3, 4, 0, 5, 1]


@pytest.mark.parametrize("order", ["top", "bottom", "random"])
def test_a_larger_removal_contains_the_smaller(order, ranking):
    path = None if order == "random" else ranking
    for small, large in zip(removed(order, 3, path), removed(order, 6, path), strict=True):
        assert set(small) < set(large)
        assert len(large) == 6


@pytest.mark.parametrize("order", ["top", "bottom", "random"])
def test_an_order_names_every_class_once(order, ranking):
    found = removal_order(stage(order, 3), 1, ranking, NAMES, IMAGES_OF)
    assert sorted(found.tolist()) == list(range(CLASSES))


def test_a_replicate_has_the_same_seeds_whatever_is_removed(ranking):
    plans = [(None, 0), ("top", 3), ("top", 6), ("bottom", 3), ("random", 3)]
    seeds = [
        [only_model(stage(*plan, replicate), ranking).seeds for replicate in range(4)]
        for plan in plans
    ]
    assert all(found == seeds[0] for found in seeds)
    assert len(set(seeds[0])) == 4
    source = stream(0, Stage.COUNTERFACTUAL_SOURCE, 3)
    assert seeds[0][3] == TrainingSeeds.from_stream(source)
    assert only_model(stage("top", 3, 2), ranking).model == 2


def test_retrained_models_share_no_seeds_with_source_models():
    retrained = {only_model(stage(None, 0, index), None).seeds for index in range(4)}
    sources = {TrainingSeeds.from_stream(stream(0, Stage.SOURCE, index)) for index in range(50)}
    assert not retrained & sources


@pytest.mark.parametrize("count", [9, 10])
def test_removing_so_many_that_fewer_than_two_are_left_is_refused(count, ranking):
    with pytest.raises(UserError, match=f"^counterfactuals: removing {count} of 10 units"):
        retrained_models(stage("top", count), ranking, NAMES, IMAGES_OF)


def test_a_mask_is_false_for_the_removed_classes():
    mask = kept_mask(np.array([4, 0]), 6)
    assert mask.tolist() == [False, True, True, True, False, True]
    assert mask.dtype == np.bool_
    assert kept_mask(np.array([], np.int64), 2).all()


@pytest.mark.parametrize("classes", [9, 11])
def test_a_ranking_of_another_number_of_classes_is_refused(ranking, classes):
    with pytest.raises(UserError, match=f"ranks 10 units, but the source data set has {classes};"):
        retrained_models(stage("top", 3), ranking, list(map(str, range(classes))), IMAGES_OF)


def test_a_ranking_that_names_a_class_twice_is_refused(tmp_path):
    path = tmp_path / "ranking.parquet"
    write_table(pa.table({"unit": [0, 1, 1, 3]}), path, "{}")
    with pytest.raises(UserError, match="estimate the influences again"):
        retrained_models(stage("top", 1), path, NAMES[:4], IMAGES_OF)


def test_an_order_without_its_ranking_is_refused():
    with pytest.raises(UserError, match=r"^--ranking: not given, but order 'bottom' needs one;"):
        retrained_models(stage("bottom", 3), None, NAMES, IMAGES_OF)


def test_a_named_order_removes_its_list_from_the_first_entry_on(tmp_path):
    path = tmp_path / "dogs.txt"
    path.write_text("class 8\nclass 1\nclass 5\n")
    assert removal_order(stage("dogs", 2), 0, path, NAMES, IMAGES_OF).tolist() == [8, 1, 5]
    assert removed("dogs", 2, path) == [[1, 8]] * 4
    assert removed("dogs", 3, path) == [[1, 5, 8]] * 4


def test_a_named_order_without_its_list_or_with_a_wrong_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--ranking: not given, but order 'dogs' needs one;"):
        retrained_models(stage("dogs", 1), None, NAMES, IMAGES_OF)
    path = tmp_path / "dogs.txt"
    path.write_text("class 8\nclss 1\n")
    with pytest.raises(UserError, match=r"dogs.txt: 'clss 1' is neither .* mean 'class 1'\?"):
        retrained_models(stage("dogs", 1), path, NAMES, IMAGES_OF)


def test_the_list_of_a_target_is_removed_or_kept_as_a_whole(tmp_path):
    path = tmp_path / "dogs.txt"
    path.write_text("class 8\nclass 1\nclass 5\n")
    for keeps, expected in [(False, [1, 5, 8]), (True, [0, 2, 3, 4, 6, 7, 9])]:
        model = only_model(stage("dogs", None, keeps=keeps), path)
        assert np.flatnonzero(~model.mask).tolist() == expected


def test_random_classes_are_matched_to_the_most_helpful_by_their_images(ranking):
    found = removed("random_matched", 3, ranking, replicates=30)
    wanted = IMAGES_OF[RANKED[:3]].sum()  # 80, 90 and 60 of 350
    totals = [IMAGES_OF[classes].sum() for classes in found]
    assert all(len(classes) == 3 for classes in found)
    # An exchange of one class can always come as near as the two classes of 5 and 10 apart.
    assert np.abs(np.array(totals) - wanted).max() <= 10
    others = removed("random", 3, replicates=30)
    assert np.mean([IMAGES_OF[classes].sum() for classes in others]) < 140
    assert removed("random_matched", 3, ranking, replicates=30) == found


def test_matched_classes_are_any_where_all_have_as_many_images():
    top, even = np.arange(3), np.full(10, 7)
    orders = [matched_order(top, even, np.random.default_rng(seed)) for seed in range(300)]
    drawn = np.concatenate([order[:3] for order in orders])
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert np.bincount(drawn, minlength=10).min() > 90 - 5 * np.sqrt(300 * 0.3 * 0.7)


def test_a_list_that_leaves_too_few_is_refused(tmp_path):
    path = tmp_path / "most.txt"
    path.write_text("\n".join(NAMES[:9]))
    with pytest.raises(UserError, match="removing 9 of 10 units leaves fewer than 2"):
        retrained_models(stage("most", 9), path, NAMES, IMAGES_OF)


def retrain(
    data: Path, folder: Path, ranking: list[int], errors: float, replicates: int = 1
) -> Path:
    """Run the program that loses the first two ranked classes; return the table it writes.

    As Snakemake does, it deletes what an earlier run has put in place.
    """
    ranked = {"unit": pa.array(ranking, pa.int32()), "standard_error": [errors] * len(ranking)}
    write_table(pa.table(ranked), folder / "ranking.parquet", "{}")
    weights, table = folder / "top-2-0.safetensors", folder / "top-2-0.parquet"
    for output in (weights, table):
        output.unlink(missing_ok=True)
    program = runpy.run_path(str(CHECKOUT / "scripts" / "counterfactual_source.py"))
    settings = stage("top", 2).model_copy(update={"replicates": list(range(replicates))})
    arguments = [
        "--settings",
        settings.model_dump_json(),
        "--ranking",
        folder / "ranking.parquet",
        "--data",
        data,
    ]
    arguments += ["--weights", weights, "--table", table, "--gpus", "0"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["counterfactual_source.py", *map(str, arguments)])
        program["main"]()
    return table


@pytest.mark.usefixtures("interpreted")
def test_a_model_is_trained_again_only_where_it_loses_other_classes(planted, tmp_path):
    first = retrain(planted, tmp_path, [3, 1, 0, 2, 4, 5], errors=0.1)
    rows, made = pq.read_table(first), read_provenance(first)
    weights = first.with_suffix(".safetensors").stat().st_ino
    for ranking, errors in (([3, 1, 0, 2, 4, 5], 0.2), ([1, 3, 5, 4, 2, 0], 0.1)):
        same = retrain(planted, tmp_path, ranking, errors)
        assert same.with_suffix(".safetensors").stat().st_ino == weights
        assert pq.read_table(same).equals(rows)
        told = read_provenance(same)
        assert told["inputs"]["ranking"] == identity(tmp_path / "ranking.parquet")
        # Including the seconds that training took.
        unchanged = {key: value for key, value in told.items() if key != "inputs"}
        assert unchanged == {key: value for key, value in made.items() if key != "inputs"}
    other = retrain(planted, tmp_path, [0, 1, 3, 2, 4, 5], errors=0.1)
    mask = unpack(pq.read_table(other)["mask"].to_pylist(), 6)[0]
    assert mask.tolist() == [False, False, True, True, True, True]


# Of the test images, the last three prove the ranking.
IMAGES = TestImages(np.array([0, 1, 0, 1]), np.array([False, True, True, True]), "per_class")
CORRECT = np.array([[True, True, True, False], [False, True, False, False]])


def write_removal(folder: Path, order: str | None, count: int, models=(0, 1)) -> tuple[Path, Path]:
    """Tables of two retrained and transferred models, with planted numbers."""
    name = f"{order}-{count}"
    transfers, sources = folder / f"t-{name}.parquet", folder / f"s-{name}.parquet"
    columns = {
        "model": pa.array(models, pa.int64()),
        "failed": pa.array([False] * len(models)),
        "accuracy": [0.99, 0.99],  # on all test images
        "is_correct": list_column(CORRECT ^ (count > 0)),
        "raw_margin": list_column(np.array([[3.0, 1, 1, 2], [3, 1, -1, -2]])),
        "validation_accuracy": [0.3 + count / 100 + model / 1000 for model in (0, 1)],
        "validation_images": pa.array([40, 40], pa.int32()),
        "auroc": pa.array([0.99, 0.99], pa.float64()),
        "class_accuracy": list_column(np.array([[0.1, 0.2], [0.3, 0.4]])),
    }
    masks = [kept_mask(np.arange(count), CLASSES)] * 2
    source_columns = {
        "model": pa.array([0, 1], pa.int64()),
        "mask": pa.array([pack(mask) for mask in masks], pa.binary(2)),
        "images": pa.array([100 - count] * 2, pa.int64()),
        "steps": pa.array([50] * 2, pa.int64()),
        "accuracy": [0.9 - count / 100, 0.8 - count / 100],
    }
    settings = {"order": order, "count": count, "budget": "epochs"}
    made = json.dumps({"settings": settings})
    write_table(pa.table(source_columns), sources, made)
    origin = {"inputs": {"sources": identity(sources)}}
    write_table(pa.table(columns), transfers, json.dumps(origin))
    return transfers, sources


@pytest.mark.usefixtures("interpreted")
def test_more_replicates_train_the_new_ones_only_and_fewer_none(planted, tmp_path, monkeypatch):
    fit, trained = Trainer.fit, []

    def counted(
        trainer: Trainer, model: Any, examples: Any, seeds: Any, name: str, **others: Any
    ) -> Effort:
        trained.append(name)
        return fit(trainer, model, examples, seeds, name, **others)

    monkeypatch.setattr(Trainer, "fit", counted)
    ranking = [3, 1, 0, 2, 4, 5]
    (tmp_path / "at once").mkdir()
    whole = retrain(planted, tmp_path / "at once", ranking, 0.1, replicates=4)
    assert trained == [f"source model {replicate}" for replicate in range(4)]
    trained.clear()
    for replicates, new in [(2, [0, 1]), (4, [2, 3]), (3, []), (4, [3])]:
        table = retrain(planted, tmp_path, ranking, 0.1, replicates)
        assert trained == [f"source model {replicate}" for replicate in new]
        trained.clear()
        assert pq.read_table(table)["model"].to_pylist() == list(range(replicates))
        assert read_provenance(table)["settings"]["replicates"] == list(range(replicates))
    rows, expected = (pq.read_table(path).replace_schema_metadata(None) for path in (table, whole))
    assert rows.equals(expected)
    weights = [load_file(path.with_suffix(".safetensors")) for path in (table, whole)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not (tmp_path / ".partial").exists()


def test_a_summary_has_a_row_for_every_retrained_model(tmp_path):
    tables = [
        write_removal(tmp_path, *removal) for removal in [(None, 0), ("top", 3), ("random", 3)]
    ]
    output = tmp_path / "summary.parquet"
    made = '{"code": "abc"}'
    transfers, sources = map(list, zip(*tables, strict=True))
    summarize_counterfactual(transfers, sources, IMAGES, "stop", output, made)
    rows = pq.read_table(output)
    assert read_provenance(output)["code"] == "abc"
    assert rows.column_names == [
        *("order", "budget", "removed", "replicate"),
        *("accuracy", "validation_accuracy", "validation_images"),
        *("class_accuracy", "auroc", "proving_images"),
        *("images", "steps", "source_accuracy", "mask"),
    ]
    assert rows["budget"].to_pylist() == [None] * 2 + ["epochs"] * 4
    assert rows["order"].to_pylist() == ["none", "none", "top", "top", "random", "random"]
    assert rows["removed"].to_pylist() == [0, 0, 3, 3, 3, 3]
    assert rows["replicate"].to_pylist() == [0, 1] * 3
    # The mean of class 0, of one image that proves, and of class 1, of two.
    assert rows["accuracy"].to_pylist() == pytest.approx([0.75, 0.25] + [0.25, 0.75] * 2)
    assert rows["proving_images"].to_pylist() == [3] * 6
    assert rows["images"].to_pylist() == [100] * 2 + [97] * 4
    assert rows["steps"].to_pylist() == [50] * 6
    expected = [0.3, 0.301, 0.33, 0.331, 0.33, 0.331]
    assert rows["validation_accuracy"].to_pylist() == pytest.approx(expected)
    assert rows["validation_images"].to_pylist() == [40] * 6
    assert rows["source_accuracy"].to_pylist() == pytest.approx([0.9, 0.8] + [0.87, 0.77] * 2)
    # The logit of class 1 minus that of class 0: -1 and 1; 1, 2 and 1, -2.
    assert rows["auroc"].to_pylist() == [1.0, 0.25] * 3
    np.testing.assert_allclose(matrix(rows["class_accuracy"])[:3], [[1, 0.5], [0, 0.5], [0, 0.5]])
    assert unpack(rows["mask"].to_pylist(), CLASSES).sum(axis=1).tolist() == [10, 10, 7, 7, 7, 7]


def test_transfers_of_other_retrained_models_are_refused(tmp_path):
    transfers, sources = write_removal(tmp_path, "top", 3, models=(0, 2))
    with pytest.raises(UserError, match=r"t-top-3.parquet: its models are not those of .*s-top-3"):
        summarize_counterfactual([transfers], [sources], IMAGES, "stop", tmp_path / "s.parquet", "")
    assert not (tmp_path / "s.parquet").exists()
