"""Curves for TensorBoard, read back by TensorBoard's own reader."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import CLASSES, TEST_PER_CLASS, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.stages import SourceStage, TransferStage
from transfer_influence.config.study import Subset
from transfer_influence.job import JobOptions
from transfer_influence.provenance import Origin
from transfer_influence.subsets import source_models
from transfer_influence.training.sources import train_sources
from transfer_influence.training.transfers import transfer
from transfer_influence.training.watching import watching

SMALL = Architecture(width=4)
RECIPE = recipe_values(epochs=3, evaluate_every=2)
ALONE = JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models="stop")


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return the values of each curve, by name and step."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
    }


def everything(folder: Path) -> set[str]:
    return {
        str(Path(place).relative_to(folder)) for place, _, files in os.walk(folder) for _ in files
    }


def train_shard(data: Path, home: Path, watched: bool = True) -> tuple[Path, Path]:
    recipe = Recipe(**RECIPE)
    stage = SourceStage(seed=0, subset=Subset(fraction=0.5), architecture=SMALL, recipe=recipe)
    options = dataclasses.replace(ALONE, tensorboard=home / "tensorboard" if watched else None)
    weights, table = (
        home / "sources" / f"000000-000001.{end}" for end in ("safetensors", "parquet")
    )
    table.parent.mkdir(parents=True, exist_ok=True)
    train_sources(
        source_models(stage, [0, 1], list(map(str, range(CLASSES)))),
        stage,
        data,
        weights,
        table,
        Origin({}, {}, ""),
        options,
    )
    return weights, table


def test_every_model_has_its_curves_and_they_say_what_its_row_says(planted, tmp_path):
    weights, sources = train_shard(planted, tmp_path)
    stage = TransferStage(
        seed=0,
        target="planted",
        mode="full",
        architecture=SMALL,
        recipe=TargetRecipe(**RECIPE, accuracy="per_class"),
    )
    table = tmp_path / "transfers" / "planted" / "full" / "000000-000001.parquet"
    table.parent.mkdir(parents=True)
    transfer(
        weights,
        sources,
        stage,
        planted,
        table,
        Origin({}, {}, ""),
        dataclasses.replace(ALONE, tensorboard=tmp_path / "tensorboard"),
    )
    shard = "000000-000001"
    assert everything(tmp_path / "tensorboard") == {
        *(f"sources/{shard}/{model}" for model in (0, 1)),
        *(f"transfers/planted/full/{shard}/{model}" for model in (0, 1)),
    }
    for path in (sources, table):
        home = tmp_path / "tensorboard" / path.relative_to(tmp_path).with_suffix("")
        for model, accuracy in enumerate(pq.read_table(path)["accuracy"].to_pylist()):
            found = curves(home / str(model))
            assert found.keys() == {
                *("train/loss", "learning_rate", "resolution", "test/accuracy", "test/loss")
            }
            assert list(found["train/loss"]) == [1, 2, 3]
            assert list(found["test/accuracy"]) == [2, 3]
            assert found["test/accuracy"][3] == pytest.approx(accuracy)


def test_watching_changes_no_result(planted, tmp_path):
    watched = train_shard(planted, tmp_path / "watched")
    alone = train_shard(planted, tmp_path / "alone", watched=False)
    assert watched[0].read_bytes() == alone[0].read_bytes()
    assert pq.read_table(watched[1]).equals(pq.read_table(alone[1]))
    assert not (tmp_path / "alone" / "tensorboard").exists()


def test_a_model_that_is_trained_again_replaces_its_unfinished_curves_only(tmp_path):
    table, folder = tmp_path / "sources" / "s.parquet", tmp_path / "tensorboard"

    def train(model: int, losses: list[float]) -> None:
        with watching(folder, table, model) as watch:
            assert watch is not None
            for epoch, loss in enumerate(losses, 1):
                watch(epoch, {"loss": loss})
            if len(losses) < 3:
                raise KeyboardInterrupt

    train(0, [3, 2, 1])
    with pytest.raises(KeyboardInterrupt):
        train(1, [9, 8])
    assert curves(folder / "sources" / "s" / "1")["loss"] == {1: 9, 2: 8}
    train(1, [6, 5, 4])
    assert curves(folder / "sources" / "s" / "1")["loss"] == {1: 6, 2: 5, 3: 4}
    assert len(list((folder / "sources" / "s" / "1").iterdir())) == 1
    assert curves(folder / "sources" / "s" / "0")["loss"] == {1: 3, 2: 2, 3: 1}


def test_a_table_elsewhere_gives_its_curves_its_name(tmp_path):
    with watching(tmp_path / "a" / "curves", tmp_path / "b" / "table.parquet", 7) as watch:
        assert watch is not None
        watch(1, {"loss": 1.0})
    assert everything(tmp_path) == {"a/curves/table/7"}


def test_tensorboard_is_imported_only_when_asked_for(tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from transfer_influence.training import sources, transfers\n"
        "from transfer_influence.training.watching import watching\n"
        "with watching(None, Path('t.parquet'), 0) as watch:\n"
        "    assert watch is None\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'tensorboard']\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_best_weights_are_those_of_the_epoch_that_validation_chooses(planted, tmp_path):
    """At a rate that spoils what was learnt, the last epoch is not the best."""
    schedule = {"kind": "multi_step", "epochs": [5], "factor": 1000}
    kept = {}
    for keep in ("last", "best"):
        values = recipe_values(epochs=6, schedule=schedule, learning_rate=0.03)
        recipe = Recipe(**values, evaluate_every=1, keep=keep)
        stage = SourceStage(seed=0, subset=Subset(count=3), architecture=SMALL, recipe=recipe)
        weights, table = (tmp_path / f"{keep}.{end}" for end in ("safetensors", "parquet"))
        options = dataclasses.replace(ALONE, tensorboard=tmp_path / keep)
        train_sources(
            source_models(stage, [0], list(map(str, range(CLASSES)))),
            stage,
            planted,
            weights,
            table,
            Origin({}, {}, keep),
            options,
        )
        (kept[keep],) = pq.read_table(table)["accuracy"].to_pylist()
        found = list(curves(tmp_path / keep / keep / "0")["test/accuracy"].values())
        chosen = -1
        if keep == "best":
            validated = curves(tmp_path / keep / keep / "0")["validation/accuracy"]
            chosen = max(range(6), key=list(validated.values()).__getitem__)
        expected = found[chosen]
        assert kept[keep] == pytest.approx(expected)
    assert kept["best"] > kept["last"] + 1 / TEST_PER_CLASS
