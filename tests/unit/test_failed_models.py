"""Models whose loss is not finite: a learning rate of 1e30 sees to that."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from tests.conftest import CLASSES, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.stages import SourceStage, TransferStage
from transfer_influence.config.study import FailedModels, Subset
from transfer_influence.counterfactual.tables import summarize_counterfactual
from transfer_influence.errors import UserError
from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.measurements import Outcomes, read_measurements
from transfer_influence.job import JobOptions
from transfer_influence.outcomes.rows import Effort
from transfer_influence.outcomes.summary import summarize
from transfer_influence.outcomes.tables import matrix, write_table
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.provenance import Origin, identity, read_provenance
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.subsets import source_models, unpack
from transfer_influence.training.sources import train_sources
from transfer_influence.training.trainer import Trainer
from transfer_influence.training.transfers import transfer

SMALL = Architecture(width=4)
RECIPE = Recipe(**recipe_values(epochs=1))
MODELS = [0, 1, 2, 3]

TOP = {"order": "top", "count": 2, "budget": "epochs"}  # settings of a removal


def options(failed_models: FailedModels) -> JobOptions:
    return JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models=failed_models)


def train_shard(
    data: Path,
    folder: Path,
    failed_models: FailedModels = "stop",
    models: list[int] = MODELS,
    recipe: Recipe = RECIPE,
    settings: dict[str, Any] | None = None,
) -> tuple[Path, Path]:
    stage = SourceStage(seed=0, subset=Subset(fraction=0.5), architecture=SMALL, recipe=recipe)
    weights, table = folder / "shard.safetensors", folder / "shard.parquet"
    origin = Origin(settings or {"seed": 0}, {"data": "d"}, "aa")
    train_sources(
        source_models(stage, models, list(map(str, range(CLASSES)))),
        stage,
        data,
        weights,
        table,
        origin,
        options(failed_models),
    )
    return weights, table


def transfer_shard(
    data: Path, shard: tuple[Path, Path], folder: Path, failed_models: FailedModels = "stop"
) -> Path:
    stage = TransferStage(
        seed=0,
        target="planted",
        mode="fixed",
        architecture=SMALL,
        recipe=TargetRecipe(**recipe_values(epochs=1)),
    )

    table = folder / "transfer.parquet"
    origin = Origin({"seed": 0}, {"data": "d", "sources": identity(shard[1])}, "aa")
    transfer(*shard, stage, data, table, origin, options(failed_models))
    return table


def images_of(data: Path) -> TestImages:
    return TestImages.divided(np.load(data / "test.labels.npy"), 0, 0)


def columns(path: Path) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata(None)


class Spoilt:
    """Trains some models at a learning rate that no model survives, and counts."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.times = 2  # how often each of them is spoilt, from its first time on
        self.trained: list[tuple[str, TrainingSeeds]] = []

    def wrap(self, fit: Callable[..., Effort]) -> Callable[..., Effort]:
        def spoilt(
            trainer: Trainer, model: Any, examples: Any, seeds: Any, name: str, **others: Any
        ) -> Effort:
            earlier = [trained for trained, _ in self.trained].count(name)
            self.trained.append((name, seeds))
            if name in self.names and earlier < self.times:
                recipe = trainer.recipe.model_copy(update={"learning_rate": 1e30})
                trainer = trainer.with_recipe(recipe)
            return fit(trainer, model, examples, seeds, name, **others)

        return spoilt

    def took(self) -> list[str]:
        """Names of what was trained since this was last asked."""
        names = [name for name, _ in self.trained]
        self.trained.clear()
        return names


@pytest.fixture
def spoilt(monkeypatch) -> Spoilt:
    found = Spoilt()
    monkeypatch.setattr(Trainer, "fit", found.wrap(Trainer.fit))
    return found


@pytest.fixture(scope="module")
def whole(planted, tmp_path_factory) -> tuple[Path, Path]:
    return train_shard(planted, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def with_failed(planted, tmp_path_factory) -> tuple[Path, Path]:
    """A shard of which model 1 failed."""
    spoilt = Spoilt()
    spoilt.names = {"source model 1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", spoilt.wrap(Trainer.fit))
        return train_shard(planted, tmp_path_factory.mktemp("failed"), "exclude")


@pytest.fixture(scope="module")
def transferred(planted, with_failed, tmp_path_factory) -> Path:
    return transfer_shard(planted, with_failed, tmp_path_factory.mktemp("transferred"), "exclude")


# Training


def test_a_model_that_fails_is_tried_twice_with_the_same_seeds_and_named(
    planted, tmp_path, spoilt, caplog
):
    spoilt.names = {"source model 1"}
    with pytest.raises(UserError) as mistake:
        train_shard(planted, tmp_path)
    assert [name[-1] for name, _ in spoilt.trained] == ["0", "1", "1"]
    seeds = spoilt.trained[1][1]
    assert spoilt.trained[2][1] == seeds
    assert str(mistake.value) == (
        f"source model 1 (seeds {seeds}): the loss is nan after epoch 1; lower the recipe's "
        f"learning_rate (1e+30). To go on without such models, set failed_models: exclude."
    )
    assert "Once more, with the same seeds." in caplog.text
    assert not list(tmp_path.glob("shard.*"))


def test_a_study_that_stopped_stops_again_at_once(planted, tmp_path, spoilt):
    spoilt.names = {"source model 1"}
    sentences = []
    for _ in range(2):
        with pytest.raises(UserError) as mistake:
            train_shard(planted, tmp_path)
        sentences.append(str(mistake.value))
    assert sentences[0] == sentences[1]
    assert spoilt.took() == ["source model 0", "source model 1", "source model 1"]


def test_a_study_that_stopped_can_go_on_without_the_model(
    planted, tmp_path, spoilt, with_failed, caplog
):
    spoilt.names = {"source model 1"}
    with pytest.raises(UserError):
        train_shard(planted, tmp_path)
    spoilt.took()
    weights, table = train_shard(planted, tmp_path, "exclude")
    assert spoilt.took() == ["source model 2", "source model 3"]
    assert "learning_rate (1e+30). The study goes on without it." in caplog.text
    assert columns(table).equals(columns(with_failed[1]))
    assert weights.read_bytes() == with_failed[0].read_bytes()


def test_a_failed_model_has_a_row_and_no_weights(whole, with_failed):
    rows, expected = columns(with_failed[1]), columns(whole[1])
    assert rows.schema.equals(expected.schema)
    assert rows["failed"].to_pylist() == [False, True, False, False]
    for name in ("model", "seed", "mask"):
        assert rows[name].equals(expected[name]), name
    for name in ("accuracy", "class_accuracy"):
        given = expected[name].to_pylist()
        assert rows[name].to_pylist() == [given[0], None, *given[2:]], name
    weights = load_file(whole[0])
    assert {name for name in weights if not name.startswith("1/")} == set(load_file(with_failed[0]))


def test_a_model_that_failed_once_only_is_like_any_other(planted, tmp_path, spoilt, whole):
    spoilt.names, spoilt.times = {"source model 1"}, 1
    weights, table = train_shard(planted, tmp_path)
    assert len(spoilt.trained) == 5
    assert columns(table).equals(columns(whole[1]))
    assert weights.read_bytes() == whole[0].read_bytes()


def test_a_model_that_its_last_step_spoils_has_failed(planted, tmp_path):
    """The only step's loss is that of the initial weights, which is finite."""
    values = recipe_values(epochs=1, batch_size=64, learning_rate=1e30)
    recipe = Recipe(**values | {"schedule": {"kind": "cyclic", "peak_epoch": 0}})
    with pytest.raises(UserError, match=r"source model 0 \(seeds [\d/]+\): the loss on the test"):
        train_shard(planted, tmp_path, models=[0], recipe=recipe)


def test_another_mistake_is_not_tried_again_nor_recorded(planted, tmp_path, spoilt):
    recipe = Recipe(**recipe_values(epochs=1, batch_size=64))  # one step, at learning rate 0
    with pytest.raises(UserError, match=r"source model 0: 1 step\(s\) in all, at learning rate 0"):
        train_shard(planted, tmp_path, "exclude", recipe=recipe)
    assert spoilt.took() == ["source model 0"]
    assert not list(tmp_path.rglob("*.failed.json"))


# Transferring


def test_a_failed_source_model_is_not_transferred(
    planted, with_failed, transferred, whole, tmp_path
):
    rows, expected = columns(transferred), columns(transfer_shard(planted, whole, tmp_path))
    assert rows.schema.equals(expected.schema)
    assert rows["failed"].to_pylist() == [False, True, False, False]
    others = [0, 2, 3]
    assert rows.take(others).equals(expected.take(others))
    for name in set(rows.column_names) - {"model", "failed"}:
        assert rows[name][1].as_py() is None, name


def test_a_failed_source_model_is_not_trained_on_and_stops_no_transfer(
    planted, with_failed, transferred, tmp_path, spoilt
):
    table = transfer_shard(planted, with_failed, tmp_path, "stop")
    assert [name.split()[2] for name in spoilt.took()] == ["0", "2", "3"]
    assert columns(table).equals(columns(transferred))


def test_a_transfer_fails_like_a_source_model(planted, whole, tmp_path, spoilt):
    name = "source model 2 on planted, fixed"
    spoilt.names = {name}
    with pytest.raises(UserError) as mistake:
        transfer_shard(planted, whole, tmp_path)
    assert str(mistake.value).startswith(f"{name} (seeds {spoilt.trained[-1][1]}): the loss is nan")
    assert spoilt.took()[2:] == [name, name]
    table = transfer_shard(planted, whole, tmp_path, "exclude")
    assert spoilt.took() == ["source model 3 on planted, fixed"]
    assert columns(table)["failed"].to_pylist() == [False, False, True, False]


# Summaries


def summary(
    folder: Path, shards: list[tuple[Path, Path]], models: int, failed_models: FailedModels
) -> Path:
    """Summarise pairs of transfers and sources."""
    output = folder / "summary.parquet"
    transfers, sources = [list(files) for files in zip(*shards, strict=True)]
    summarize(transfers, sources, models, failed_models, output, "{}")
    return output


def test_a_summary_leaves_failed_models_out(transferred, with_failed, tmp_path, caplog):
    path = summary(tmp_path, [(transferred, with_failed[1])], 4, "exclude")
    rows, sources = pq.read_table(path), columns(with_failed[1])
    others = [0, 2, 3]
    assert rows["model"].to_pylist() == others
    assert "failed" not in rows.column_names
    assert rows["mask"].to_pylist() == sources["mask"].take(others).to_pylist()
    assert rows["source_accuracy"].to_pylist() == sources["accuracy"].take(others).to_pylist()
    outcomes = columns(transferred).take(others)
    for name in outcomes.drop_columns("failed").column_names:
        assert rows[name].to_pylist() == outcomes[name].to_pylist(), name
    assert f"{path}: without 1 model(s) whose training failed: 1" in caplog.text


def test_a_summary_refuses_failed_models_where_they_stop_the_study(
    transferred, with_failed, tmp_path
):
    with pytest.raises(UserError) as mistake:
        summary(tmp_path, [(transferred, with_failed[1])], 4, "stop")
    assert str(mistake.value) == (
        f"{tmp_path}/summary.parquet: the training of 1 model(s) failed (1); change the recipe, or "
        f"go on without them by failed_models: exclude."
    )
    assert not list(tmp_path.iterdir())


def test_a_failed_model_beyond_those_of_the_study_stops_nothing(transferred, with_failed, tmp_path):
    rows = pq.read_table(
        summary(tmp_path, [(transferred, with_failed[1])], 1, "stop"), columns=["model"]
    )
    assert rows["model"].to_pylist() == [0]


@pytest.fixture(scope="module")
def all_failed(planted, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Weights, sources and transfers of a shard of which all models failed."""
    folder = tmp_path_factory.mktemp("all_failed")
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30})
    shard = train_shard(planted, folder, "exclude", [4, 5], recipe)
    return *shard, transfer_shard(planted, shard, folder, "exclude")


def test_a_shard_whose_models_all_failed_has_their_rows(all_failed, with_failed):
    weights, sources, transfers = all_failed
    assert load_file(weights) == {}
    expected = columns(with_failed[1]).select(["model", "failed", "seed", "mask"])
    assert columns(sources).schema.equals(expected.schema)
    assert columns(sources)["failed"].to_pylist() == [True, True]
    assert columns(transfers).to_pydict() == {"model": [4, 5], "failed": [True, True]}


@pytest.mark.parametrize("last", [True, False])
def test_a_shard_whose_models_all_failed_leaves_the_others(
    all_failed, transferred, with_failed, tmp_path, last
):
    _, sources, transfers = all_failed
    both = [(transferred, with_failed[1]), (transfers, sources)]
    path = summary(tmp_path, both if last else both[::-1], 6, "exclude")
    assert pq.read_table(path)["model"].to_pylist() == [0, 2, 3]


def test_a_summary_of_failed_models_only_is_refused(all_failed, tmp_path):
    _, sources, transfers = all_failed
    shifted = [tmp_path / "t.parquet", tmp_path / "s.parquet"]
    for path, other in zip((sources, transfers), shifted[::-1], strict=True):
        table = pq.read_table(path)
        made = read_provenance(path)
        if other is shifted[0]:
            made["inputs"]["sources"] = identity(shifted[1])
        table = table.set_column(0, "model", pa.array([0, 1]))
        write_table(table, other, json.dumps(made))
    with pytest.raises(
        UserError, match=r"of 2 model\(s\) failed \(0, 1\); change the recipe, as none"
    ):
        summary(tmp_path, [tuple(shifted)], 2, "exclude")


def test_influences_without_the_failed_models_are_right(planted, tmp_path):
    """Against the difference in means, computed directly from the tables of the shards."""
    spoilt = Spoilt()
    spoilt.names = {f"source model {number}" for number in (1, 6)}
    spoilt.names |= {"source model 9 on planted, fixed"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "fit", spoilt.wrap(Trainer.fit))
        made = []
        for first in (0, 6):
            folder = tmp_path / str(first)
            shard = train_shard(planted, folder, "exclude", list(range(first, first + 6)))
            made.append((transfer_shard(planted, shard, folder, "exclude"), shard[1]))
    path = summary(tmp_path, made, 12, "exclude")
    names = [str(number) for number in range(CLASSES)]
    data = read_measurements(path, "raw_margin", names, images_of(planted), memory_gb=4)
    on_examples = joined(DifferenceInMeans(data, 1e9).fit(data.examples)).influence
    on_whole = joined(DifferenceInMeans(data, 1e9).fit(Outcomes.of(data.whole))).influence
    kept = [0, 2, 3, 4, 5, 7, 8, 10, 11]
    sources = pa.concat_tables([columns(source) for _, source in made]).take(kept)
    transfers = pa.concat_tables([columns(transfer) for transfer, _ in made]).take(kept)
    masks = unpack(sources["mask"].to_pylist(), CLASSES)
    margins = matrix(transfers["raw_margin"]).astype(np.float64)
    for unit in range(CLASSES):
        mask = masks[:, unit]
        expected = margins[mask].mean(axis=0) - margins[~mask].mean(axis=0)
        np.testing.assert_allclose(on_examples[unit], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(on_whole[unit], [expected.mean()], atol=1e-9)


# Counterfactuals


def test_failed_replicates_are_left_out_of_a_counterfactual(planted, tmp_path, spoilt, caplog):
    spoilt.names = {"source model 1", "source model 2 on planted, fixed"}
    shard = train_shard(planted, tmp_path, "exclude", settings=TOP)
    table = transfer_shard(planted, shard, tmp_path, "exclude")
    output = tmp_path / "summary.parquet"
    with pytest.raises(UserError) as mistake:  # as after a switch from "exclude"
        summarize_counterfactual([table], [shard[1]], images_of(planted), "stop", output, "{}")
    assert str(mistake.value) == (
        f"{table}: the training of replicate(s) 1, 2 with 2 units removed (top) failed; change the "
        f"recipe, or go on without them by failed_models: exclude."
    )
    assert not output.exists()
    summarize_counterfactual([table], [shard[1]], images_of(planted), "exclude", output, "{}")
    rows = pq.read_table(output)
    assert rows["replicate"].to_pylist() == [0, 3]
    assert rows["order"].to_pylist() == ["top", "top"]
    kept = columns(table).take([0, 3])
    assert rows["accuracy"].to_pylist() == kept["accuracy"].to_pylist()
    sources = columns(shard[1]).take([0, 3])
    assert rows["source_accuracy"].to_pylist() == sources["accuracy"].to_pylist()
    assert rows["mask"].to_pylist() == sources["mask"].to_pylist()
    assert f"{table}: without replicates [1, 2], whose training failed" in caplog.text


@pytest.mark.parametrize(
    ("removal", "remedy"),
    [
        (TOP, ", or leave 2 out of counterfactuals.counts."),
        ({"order": None, "count": 0, "budget": "epochs"}, "."),
    ],
)
def test_a_removal_whose_replicates_all_failed_is_named(planted, tmp_path, removal, remedy):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30})
    shard = train_shard(planted, tmp_path, "exclude", [0, 1], recipe, removal)
    table = transfer_shard(planted, shard, tmp_path, "exclude")
    with pytest.raises(UserError) as mistake:
        summarize_counterfactual(
            [table], [shard[1]], images_of(planted), "exclude", tmp_path / "summary.parquet", "{}"
        )
    assert str(mistake.value) == (
        f"{table}: the training of all replicates failed; change the recipe{remedy}"
    )
