"""The rows that models leave: one a model, also of a model whose training failed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.outcomes.evaluation import Evaluation
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.tables import PER_EXAMPLE, list_column, read_table, write_table
from transfer_influence.subsets import SourceModel, pack


def identity(source: SourceModel, failed: bool) -> pa.Table:
    """Return the columns that a source model has even if its training failed.

    The seed of a model that was not trained here is null.
    """
    seed = source.seeds and source.seeds.weights
    return (
        model_column(source.model, failed)
        .append_column("seed", pa.array([seed], pa.int64()))
        .append_column("mask", pa.array([pack(source.mask)], pa.binary(-(-len(source.mask) // 8))))
    )


@dataclass(frozen=True)
class Effort:
    """What a model was trained on.

    Attributes:
        images: how many; None where that is not known.
        steps: of the optimizer; None where that is not known.
    """

    images: int | None = None
    steps: int | None = None


def source_row(
    source: SourceModel, evaluation: Evaluation, own: np.ndarray, effort: Effort
) -> pa.Table:
    """Return the one-row table of a source model.

    `own` are the test examples of the classes that the model has seen: `accuracy` is over these,
    while `class_accuracy` has all classes (0 for a class it never saw).
    """
    row = identity(source, failed=False)
    row = row.append_column("images", pa.array([effort.images], pa.int64()))
    row = row.append_column("steps", pa.array([effort.steps], pa.int64()))
    row = row.append_column("accuracy", pa.array([float(evaluation.is_correct[own].mean())]))
    return row.append_column("class_accuracy", list_column(evaluation.class_accuracy[None]))


def transfer_row(model: int, evaluation: Evaluation) -> pa.Table:
    """Return the one-row table of a transferred model."""
    row = model_column(model, failed=False)
    columns = {
        "accuracy": pa.array([evaluation.accuracy]),
        "loss": pa.array([evaluation.loss]),
        "auroc": pa.array([evaluation.auroc], pa.float64()),
        "class_accuracy": list_column(evaluation.class_accuracy[None]),
        **{name: list_column(getattr(evaluation, name)[None]) for name in PER_EXAMPLE},
    }
    for name, column in columns.items():
        row = row.append_column(name, column)
    return row


def model_column(model: int, failed: bool) -> pa.Table:
    """Return a row with a model's number, and whether its training failed."""
    return pa.table({"model": pa.array([model], pa.int64()), "failed": pa.array([failed])})


def write_rows(models: list[int], shard: PartialShard, table: Path, provenance: str) -> None:
    """Write the rows of all models of a shard; what a failed model does not have is null."""
    rows = [shard.row(number) for number in models]
    # A failed model's row has only the first columns of a whole one.
    columns = max(rows, key=lambda row: row.num_columns).schema.empty_table()
    write_table(pa.concat_tables([columns, *rows], promote_options="default"), table, provenance)


def failed_models(table: Path) -> dict[int, bool]:
    """Return for each model of a shard, in order, whether it failed."""
    rows = read_table(table, ["model", "failed"])
    return dict(zip(rows["model"].to_pylist(), rows["failed"].to_pylist(), strict=True))
