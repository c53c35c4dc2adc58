import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from safetensors.torch import load_file, save_file
from tests.conftest import CLASSES, TEST_PER_CLASS, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.stages import ImportStage, SourceStage, TransferStage
from transfer_influence.config.study import FailedModels, Subset
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions
from transfer_influence.models.building import build_model
from transfer_influence.outcomes.rows import Effort
from transfer_influence.outcomes.summary import ROW_GROUP, summarize
from transfer_influence.outcomes.tables import list_column, matrix, open_table, write_table
from transfer_influence.outcomes.weights import read_weights
from transfer_influence.provenance import Origin, identity, read_provenance
from transfer_influence.subsets import imported_models, source_models, unpack
from transfer_influence.training.imports import import_sources
from transfer_influence.training.sources import train_sources
from transfer_influence.training.trainer import Trainer
from transfer_influence.training.transfers import transfer

SMALL = Architecture(width=4)
RECIPE = Recipe(**recipe_values(epochs=1))
HALF = Subset(fraction=0.5)
ALONE = JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models="stop")
TEST_IMAGES = CLASSES * TEST_PER_CLASS


def provenance(device: str = "cpu", seconds: float = 1.0, **changes: Any) -> str:
    return json.dumps(
        {"settings": {"seed": 0}, "inputs": {"data": "d"}, "device": device, "seconds": seconds}
        | changes
    )


def columns(path: Path) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata(None)


# Tables


@given(
    arrays(
        st.sampled_from([np.float32, np.float64, np.int32, np.bool_]),
        array_shapes(min_dims=2, max_dims=2, min_side=1),
    )
)
def test_a_matrix_survives_being_a_column(rows):
    column = list_column(rows)
    assert len(column) == len(rows)
    found = matrix(pa.chunked_array([column[:1], column[1:]]))
    np.testing.assert_array_equal(found, rows)
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(matrix(column), rows)


def test_a_matrix_without_columns_becomes_empty_lists():
    column = list_column(np.zeros((3, 0), np.float32))
    assert column.to_pylist() == [[], [], []]
    assert column.type.value_type == pa.float32()


def test_provenance_survives_the_file(tmp_path):
    write_table(pa.table({"model": [1]}), tmp_path / "t.parquet", provenance(note="grüße"))
    told = read_provenance(tmp_path / "t.parquet")
    assert told.pop("digest")
    assert told == json.loads(provenance(note="grüße"))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_table_without_provenance_is_refused(tmp_path):
    pq.write_table(pa.table({"model": [1]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t.parquet: carries no provenance, so it is damaged"):
        read_provenance(tmp_path / "t.parquet")


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def broken_footer(data: bytes) -> bytes:
    size = int.from_bytes(data[-8:-4], "little")
    return data[: -8 - size] + b"\xff" * size + data[-8:]


@pytest.mark.parametrize("damage", [truncated, broken_footer, lambda _: b"", lambda _: b"PAR1" * 3])
def test_a_damaged_table_is_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "t.parquet"
    write_table(pa.table({"model": list(range(50))}), path, provenance())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as mistake:
        open_table(path)
    assert str(mistake.value).startswith(f"{path}: not a whole Parquet file (")
    assert str(mistake.value).endswith("; delete it and run the workflow again.")
    assert "\n" not in str(mistake.value)


def test_a_missing_table_is_named():
    with pytest.raises(UserError, match=r"^no.parquet: no such file; run the job that makes it"):
        open_table(Path("no.parquet"))


# Training a shard


def train_shard(
    data: Path, folder: Path, models: list[int], digest: str = "aa", seed: int = 0
) -> tuple[Path, Path]:
    stage = SourceStage(seed=seed, subset=HALF, architecture=SMALL, recipe=RECIPE)
    weights, table = folder / "shard.safetensors", folder / "shard.parquet"
    train_sources(
        source_models(stage, models, list(map(str, range(CLASSES)))),
        stage,
        data,
        weights,
        table,
        Origin({}, {}, digest),
        ALONE,
    )
    return weights, table


def import_shard(
    bank: Path, data: Path, folder: Path, models: list[int], options: JobOptions | None = None
) -> tuple[Path, Path]:
    stage = ImportStage(
        unit="class",
        checkpoints=f"{bank}/{{model}}.pt",
        masks=bank / "masks.npy",
        state_key=None,
        key_map={},
        architecture=SMALL,
        recipe=RECIPE,
        models=4,
        bank="",
    )
    weights, table = folder / "shard.safetensors", folder / "shard.parquet"
    import_sources(
        imported_models(stage.masks, models, CLASSES),
        stage,
        data,
        weights,
        table,
        Origin({}, {}, "aa"),
        options or ALONE,
    )
    return weights, table


class Killed(BaseException):
    pass


@pytest.fixture
def calls(monkeypatch) -> dict[str, Any]:
    """What was trained, call by call; `kill_at` is the number of the call that dies."""
    real, found = Trainer.fit, {"names": [], "examples": [], "trained": [], "kill_at": None}

    def fit(
        trainer: Trainer, model: Any, examples: Any, seeds: Any, name: str, **others: Any
    ) -> Effort:
        if len(found["names"]) + 1 == found["kill_at"]:
            raise Killed
        found["names"].append(name)
        found["examples"].append(examples)
        effort = real(trainer, model, examples, seeds, name, **others)
        found["trained"].append(model.state_dict())
        return effort

    monkeypatch.setattr(Trainer, "fit", fit)
    return found


@pytest.fixture(scope="module")
def shard(planted, tmp_path_factory) -> tuple[Path, Path]:
    """Weights and table of four source models."""
    return train_shard(planted, tmp_path_factory.mktemp("shard"), [0, 1, 2, 3])


def test_a_shard_of_source_models_has_a_row_and_weights_for_each(shard, planted):
    weights, table = shard
    rows, states = pq.read_table(table), load_file(weights)
    assert rows["model"].to_pylist() == [0, 1, 2, 3]
    masks = unpack(rows["mask"].to_pylist(), CLASSES)
    assert masks.sum(axis=1).tolist() == [3] * 4
    assert {name.split("/")[0] for name in states} == {"0", "1", "2", "3"}
    assert read_provenance(table)["device"] == "cpu"
    class_accuracy = matrix(rows["class_accuracy"])
    labels = np.load(planted / "test.labels.npy")
    for index, mask in enumerate(masks):
        own = np.flatnonzero(mask[labels])
        assert len(own) == 3 * TEST_PER_CLASS
        assert rows["accuracy"][index].as_py() == pytest.approx(class_accuracy[index][mask].mean())
        fresh = build_model(SMALL, CLASSES, rows["seed"][index].as_py())
        state = read_weights(weights, index)
        assert state.keys() == fresh.state_dict().keys()
        assert not torch.equal(state["stem.0.weight"], fresh.state_dict()["stem.0.weight"])


@pytest.fixture
def bank(shard, tmp_path) -> Path:
    """The models of the shard as a bank of checkpoints."""
    folder = tmp_path / "bank"
    folder.mkdir()
    for model in range(4):
        torch.save(read_weights(shard[0], model), folder / f"{model}.pt")
    masks = unpack(pq.read_table(shard[1])["mask"].to_pylist(), CLASSES)
    np.save(folder / "masks.npy", masks)
    return folder


def test_models_of_a_bank_leave_what_trained_ones_do(bank, shard, planted, tmp_path):
    weights, table = import_shard(bank, planted, tmp_path, [0, 1, 2, 3])
    assert weights.read_bytes() == shard[0].read_bytes()
    unknown = ["seed", "images", "steps"]  # of a model that was not trained here
    assert columns(table).drop_columns(unknown).equals(columns(shard[1]).drop_columns(unknown))
    assert all(columns(table)[name].null_count == 4 for name in unknown)
    assert not list(tmp_path.glob(".partial/*"))


def test_a_checkpoint_that_is_not_finite_is_named(bank, planted, tmp_path):
    state = torch.load(bank / "2.pt")
    state["stem.0.weight"][0] = torch.nan
    torch.save(state, bank / "2.pt")
    with pytest.raises(UserError, match=r"source model 2: the loss .* is nan; replace its check"):
        import_shard(bank, planted, tmp_path, [0, 1, 2, 3])
    assert not (tmp_path / "shard.parquet").exists()
    without = dataclasses.replace(ALONE, failed_models="exclude")
    _, table = import_shard(bank, planted, tmp_path, [0, 1, 2, 3], without)
    assert columns(table)["failed"].to_pylist() == [False, False, True, False]


def test_a_model_does_not_depend_on_the_shard_it_is_trained_in(shard, planted, tmp_path):
    weights, table = train_shard(planted, tmp_path, [3])
    assert columns(table).equals(columns(shard[1]).slice(3))
    alone, together = read_weights(weights, 3), read_weights(shard[0], 3)
    assert all(torch.equal(alone[name], together[name]) for name in together)


def test_a_source_model_is_trained_on_the_classes_of_its_mask(planted, tmp_path, calls):
    _, table = train_shard(planted, tmp_path, [0, 1, 2])
    labels = np.load(planted / "train.labels.npy")
    masks = unpack(pq.read_table(table)["mask"].to_pylist(), CLASSES)
    for mask, examples in zip(masks, calls["examples"], strict=True):
        np.testing.assert_array_equal(
            examples, np.flatnonzero(np.isin(labels, np.flatnonzero(mask)))
        )


@pytest.mark.parametrize("kill_at", [1, 2, 4])
def test_a_killed_shard_goes_on_after_its_last_finished_model(
    shard, planted, tmp_path, calls, kill_at
):
    calls["kill_at"] = kill_at
    with pytest.raises(Killed):
        train_shard(planted, tmp_path, [0, 1, 2, 3])
    assert not list(tmp_path.glob("*shard*"))
    before, calls["kill_at"] = list(calls["names"]), None
    weights, table = train_shard(planted, tmp_path, [0, 1, 2, 3])
    assert before == [f"source model {number}" for number in range(kill_at - 1)]
    assert calls["names"] == [f"source model {number}" for number in range(4)]
    assert columns(table).equals(columns(shard[1]))
    assert weights.read_bytes() == shard[0].read_bytes()
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [
        "shard.parquet",
        "shard.safetensors",
    ]
    assert not (tmp_path / ".partial").exists()


def test_a_shard_killed_while_writing_its_outputs_trains_nothing_again(
    shard, planted, tmp_path, calls
):
    class KilledWhileWriting(Origin):
        def provenance(self, device: str = "cpu", seconds: float | None = None) -> str:
            raise Killed

    stage = SourceStage(seed=0, subset=HALF, architecture=SMALL, recipe=RECIPE)
    with pytest.raises(Killed):
        train_sources(
            source_models(stage, [0, 1], list(map(str, range(CLASSES)))),
            stage,
            planted,
            tmp_path / "shard.safetensors",
            tmp_path / "shard.parquet",
            KilledWhileWriting({}, {}, "aa"),
            ALONE,
        )
    assert not list(tmp_path.glob("shard.*")), "half a result"
    train_shard(planted, tmp_path, [0, 1])
    assert calls["names"] == ["source model 0", "source model 1"]


def test_another_digest_does_not_resume_and_leaves_nothing_behind(planted, tmp_path, calls):
    calls["kill_at"] = 2
    with pytest.raises(Killed):
        train_shard(planted, tmp_path, [0, 1], digest="aa", seed=1)
    calls["kill_at"] = None
    _, table = train_shard(planted, tmp_path, [0, 1], digest="bb", seed=2)
    assert calls["names"] == ["source model 0", "source model 0", "source model 1"]
    _, fresh = train_shard(planted, tmp_path / "fresh", [0, 1], digest="bb", seed=2)
    assert columns(table).equals(columns(fresh))
    assert not (tmp_path / ".partial").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "not readable"),
        (b"", "not readable"),
        (b"\xff" * 100, "not readable"),
    ],
)
def test_damaged_weights_are_refused(tmp_path, content, sentence):
    path = tmp_path / "shard.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"shard.safetensors: {sentence} \(.*\); train that shard"):
        read_weights(path, 0)


def test_the_weights_of_model_1_are_not_those_of_model_11(tmp_path):
    path = tmp_path / "shard.safetensors"
    save_file({"11/w": torch.ones(1), "1/w": torch.zeros(1)}, path)
    assert read_weights(path, 1)["w"].tolist() == [0]
    with pytest.raises(UserError, match="holds no source model 2; train that shard again"):
        read_weights(path, 2)


# Transferring a shard


def transfer_shard(
    data: Path, shard: tuple[Path, Path], folder: Path, mode: str = "fixed", digest: str = "aa"
) -> Path:
    stage = TransferStage(
        seed=0,
        target="planted",
        mode=mode,
        architecture=SMALL,
        recipe=TargetRecipe(**recipe_values(batchnorm="frozen")),
    )

    table = folder / "transfer.parquet"
    transfer(
        *shard,
        stage,
        data,
        table,
        Origin({}, {"sources": identity(shard[1])}, digest),
        ALONE,
    )
    return table


@pytest.fixture(scope="module")
def transferred(planted, shard, tmp_path_factory) -> Path:
    return transfer_shard(planted, shard, tmp_path_factory.mktemp("transfer"))


def test_a_transfer_leaves_the_outcomes_of_every_model(transferred, planted):
    rows = pq.read_table(transferred)
    labels = np.load(planted / "test.labels.npy")
    assert rows["model"].to_pylist() == [0, 1, 2, 3]
    correct, prediction = matrix(rows["is_correct"]), matrix(rows["prediction"])
    assert correct.shape == (4, TEST_IMAGES)
    np.testing.assert_array_equal(correct, prediction == labels)
    np.testing.assert_array_equal(matrix(rows["raw_margin"]) > 0, correct)
    np.testing.assert_array_equal(rows["accuracy"], correct.mean(axis=1))
    np.testing.assert_allclose(matrix(rows["class_accuracy"]).mean(axis=1), correct.mean(axis=1))
    assert rows["auroc"].null_count == 4
    for name in ("raw_margin", "softmax_margin", "raw_logit", "softmax_probability"):
        assert rows[name].type == pa.list_(pa.float32(), TEST_IMAGES)
    assert np.unique(matrix(rows["raw_margin"]), axis=0).shape[0] == 4


def test_a_fixed_transfer_trains_only_a_new_head_on_top_of_its_source_model(
    planted, shard, tmp_path, calls
):
    transfer_shard(planted, shard, tmp_path)
    for number, trained in enumerate(calls["trained"]):
        source = read_weights(shard[0], number)
        changed = {name for name in source if not torch.equal(source[name], trained[name])}
        assert changed == {"head.weight", "head.bias"}
        assert calls["examples"][number].tolist() == list(range(120))


def test_fine_tuning_everything_gives_other_outcomes_than_a_new_head(
    transferred, planted, shard, tmp_path
):
    full = transfer_shard(planted, shard, tmp_path, mode="full")
    assert not columns(full)["raw_margin"].equals(columns(transferred)["raw_margin"])


def test_a_killed_transfer_goes_on_after_its_last_finished_model(
    transferred, planted, shard, tmp_path, calls
):
    calls["kill_at"] = 3
    with pytest.raises(Killed):
        transfer_shard(planted, shard, tmp_path)
    calls["kill_at"] = None
    table = transfer_shard(planted, shard, tmp_path)
    assert calls["names"] == [f"source model {number} on planted, fixed" for number in range(4)]
    assert columns(table).equals(columns(transferred))
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["transfer.parquet"]
    assert not (tmp_path / ".partial").exists()


# Summaries


def outcomes_of(models: list[int], examples: int = 5) -> np.ndarray:
    return np.stack(
        [np.random.default_rng([7, model]).normal(size=examples) for model in models]
    ).astype(np.float32)


def mask_of(model: int) -> bytes:
    return bytes([model % 251, 3])


def write_shard(
    folder: Path,
    models: list[int],
    name: str = "",
    margins: np.ndarray | None = None,
    sources: list[int] | None = None,
    scalars: dict[str, list] | None = None,
    made: str | None = None,
    sources_made: str | None = None,
) -> tuple[Path, Path]:
    """A table of transfers and one of its sources, with planted numbers."""
    sources = models if sources is None else sources
    margins = outcomes_of(models) if margins is None else margins
    name = name or f"{models[0]:06d}"
    transfers_path, sources_path = folder / f"t-{name}.parquet", folder / f"s-{name}.parquet"
    columns = {
        "model": pa.array(models, pa.int64()),
        "failed": pa.array([False] * len(models)),
        "accuracy": pa.array([model / 1000 for model in models]),
        "auroc": pa.array([None] * len(models), pa.float64()),
        "raw_margin": list_column(margins),
        **(scalars or {}),
    }
    source_columns = {
        "model": pa.array(sources, pa.int64()),
        "mask": pa.array([mask_of(model) for model in sources], pa.binary(2)),
        "accuracy": pa.array([model / 500 for model in sources]),
    }
    write_table(pa.table(source_columns), sources_path, sources_made or provenance())
    origin = json.loads(made or provenance())
    origin["inputs"]["sources"] = identity(sources_path)
    write_table(pa.table(columns), transfers_path, json.dumps(origin))
    return transfers_path, sources_path


def write_shards(folder: Path, models: int, size: int) -> list[tuple[Path, Path]]:
    return [
        write_shard(folder, list(range(first, first + size))) for first in range(0, models, size)
    ]


def summary(
    folder: Path,
    shards: list[tuple[Path, Path]],
    models: int,
    failed_models: FailedModels = "stop",
) -> Path:
    output = folder / "summary.parquet"
    summarize(
        [transfers for transfers, _ in shards],
        [sources for _, sources in shards],
        models,
        failed_models,
        output,
        provenance(note="sum"),
    )
    return output


@pytest.mark.parametrize("size", [1, 7, 16, 64, 100, 150])
def test_a_summary_is_the_same_whatever_the_size_of_the_shards(tmp_path, size):
    path = summary(tmp_path, write_shards(tmp_path, 150, size), 150)
    rows, file = pq.read_table(path), pq.ParquetFile(path)
    assert rows["model"].to_pylist() == list(range(150))
    np.testing.assert_array_equal(matrix(rows["raw_margin"]), outcomes_of(list(range(150))))
    assert rows["mask"].to_pylist() == [mask_of(model) for model in range(150)]
    assert rows["source_accuracy"].to_pylist() == [model / 500 for model in range(150)]
    assert rows["accuracy"].to_pylist() == [model / 1000 for model in range(150)]
    groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert groups == [64, 64, 22]
    assert ROW_GROUP == 64
    assert read_provenance(path)["note"] == "sum"


@pytest.mark.parametrize("models", [1, 9, 10, 11, 12, 64, 65])
def test_a_summary_keeps_the_first_models_only(tmp_path, models):
    shards = write_shards(tmp_path, models, 12)
    rows = pq.read_table(summary(tmp_path, shards, models))
    assert rows["model"].to_pylist() == list(range(models))


def refusal(folder: Path, shards: list[tuple[Path, Path]], models: int) -> str:
    with pytest.raises(UserError) as mistake:
        summary(folder, shards, models)
    assert not list(folder.glob("*summary*")), "a refused summary was written"
    return str(mistake.value).replace(f"{folder}/", "")


def test_a_missing_model_is_refused(tmp_path):
    shards = write_shards(tmp_path, 12, 4)
    assert refusal(tmp_path, [shards[0], shards[2]], 12) == (
        "summary.parquet: model 4 is not in the shards exactly once; run the workflow again."
    )
    assert refusal(tmp_path, shards, 13).startswith("summary.parquet: model 12 is not in")


def test_a_model_that_is_there_twice_is_refused(tmp_path):
    shards = [write_shard(tmp_path, [0, 1, 2]), write_shard(tmp_path, [2, 3])]
    assert refusal(tmp_path, shards, 4).startswith(
        "summary.parquet: model 2 is not in the shards ex"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 4), (3, 2)])
def test_an_outcome_that_is_not_finite_names_file_column_and_model(tmp_path, value, place):
    margins = outcomes_of([4, 5, 6, 7])
    margins[place] = value
    shards = [*write_shards(tmp_path, 4, 4), write_shard(tmp_path, [4, 5, 6, 7], margins=margins)]
    assert refusal(tmp_path, shards, 8) == (
        f"t-000004.parquet: raw_margin of model {4 + place[0]} is not finite; delete the file and "
        f"run again, with a lower learning_rate if it comes back."
    )


def test_a_scalar_that_is_not_finite_is_refused_too(tmp_path):
    shards = [write_shard(tmp_path, [0, 1], scalars={"loss": [0.5, float("inf")]})]
    assert refusal(tmp_path, shards, 2).startswith(
        "t-000000.parquet: loss of model 1 is not finite"
    )


def test_shards_made_elsewhere_at_another_time_are_fine(tmp_path):
    first = write_shard(tmp_path, [0, 1])
    elsewhere = provenance("NVIDIA H100", 9.0, commit="abc", libraries={"torch": "9"}, code="x")
    second = write_shard(tmp_path, [2, 3], made=elsewhere, sources_made=elsewhere)
    assert len(pq.read_table(summary(tmp_path, [first, second], 4))) == 4


def test_transfers_of_other_sources_are_refused(tmp_path):
    shards = [write_shard(tmp_path, [0, 1], sources=[1, 0])]
    assert refusal(tmp_path, shards, 2) == (
        "t-000000.parquet: its models are not those of s-000000.parquet; delete it and run again."
    )


def test_transfers_of_sources_that_were_trained_anew_are_refused(tmp_path):
    shards = [write_shard(tmp_path, [0, 1])]
    rows = pq.read_table(shards[0][1])
    write_table(rows.set_column(1, "mask", [[b"ab", b"cd"]]), shards[0][1], provenance())
    assert "its models are not those of s-000000.parquet" in refusal(tmp_path, shards, 2)


def test_shards_with_other_numbers_of_test_images_are_refused(tmp_path):
    shards = [
        write_shard(tmp_path, [0, 1]),
        write_shard(tmp_path, [2, 3], margins=outcomes_of([2, 3], examples=6)),
    ]
    assert refusal(tmp_path, shards, 4).startswith(
        "t-000002.parquet: 6 test images, but the shards"
    )


def test_a_truncated_shard_is_refused(tmp_path):
    shards = write_shards(tmp_path, 8, 4)
    shards[1][0].write_bytes(truncated(shards[1][0].read_bytes()))
    assert refusal(tmp_path, shards, 8).startswith("t-000004.parquet: not a whole Parquet file (")


def test_a_shard_damaged_in_the_middle_is_refused(tmp_path):
    shards = write_shards(tmp_path, 8, 4)
    data = bytearray(shards[1][0].read_bytes())
    data[4:200] = b"\xff" * 196
    shards[1][0].write_bytes(data)
    assert refusal(tmp_path, shards, 8).startswith("t-000004.parquet: not a whole Parquet file (")


def test_real_shards_can_be_summarised(transferred, shard, tmp_path):
    rows = pq.read_table(summary(tmp_path, [(transferred, shard[1])], 3))
    expected = pq.read_table(transferred).slice(0, 3).drop_columns("failed")
    for name in expected.column_names:
        assert rows[name].to_pylist() == expected[name].to_pylist(), name
    assert rows["mask"].to_pylist() == pq.read_table(shard[1])["mask"].to_pylist()[:3]
