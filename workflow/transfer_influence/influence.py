"""How much better transferred models do when their source was trained with a class than without.

Everything here is linear algebra on two matrices: masks (models × classes) and outcomes (models ×
columns), where a column is a target example, or the mean over all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence.config.study import Outcome
from transfer_influence.errors import UserError
from transfer_influence.outcomes.tables import (
    damage_named,
    list_column,
    matrix,
    open_table,
    read_table,
    write_table,
)
from transfer_influence.subsets import unpack


@dataclass(frozen=True)
class Influences:
    """Influence of each source class on each column of outcomes, with its standard error."""

    influence: np.ndarray  # float64 (classes, columns)
    standard_error: np.ndarray  # float64 (classes, columns)


class DifferenceInMeans:
    """Mean outcome of the models with a class minus the mean of those without, in one pass.

    With masks *M* and outcomes *Y*, the sums of the models with each class are the product *MᵀY*;
    those of the models without follow from the column sums. The standard error is Welch's, which
    lets the two groups differ in variance. Outcomes are shifted by the first model's before their
    squares are summed, so that nothing cancels (Chan, Golub & LeVeque 1983).

    Source of the estimator: Jain et al. 2023, section 3.1, equation 1.
    """

    def __init__(self, classes: int, columns: int) -> None:
        self._with = np.zeros(classes)
        self._sum_with = np.zeros((classes, columns))
        self._squares_with = np.zeros((classes, columns))
        self._models = 0
        self._sum = np.zeros(columns)
        self._squares = np.zeros(columns)
        self._shift: np.ndarray | None = None

    def add(self, masks: np.ndarray, outcomes: np.ndarray) -> None:
        """Add models: masks bool (n, classes), outcomes float (n, columns)."""
        if self._shift is None:
            self._shift = outcomes[0].astype(np.float64)
        kept = masks.astype(np.float64)
        shifted = outcomes - self._shift
        squares = shifted**2
        self._models += len(kept)
        self._with += kept.sum(axis=0)
        self._sum_with += kept.T @ shifted
        self._squares_with += kept.T @ squares
        self._sum += shifted.sum(axis=0)
        self._squares += squares.sum(axis=0)

    def result(self, names: list[str]) -> Influences:
        """Return the influences; `names` are the classes, for error messages.

        Raises:
            UserError: a class is in fewer than two subsets, or missing from fewer than two, so that
                there is no difference or no standard error.
        """
        for count, name in zip(self._with, names, strict=True):
            if not 2 <= count <= self._models - 2:
                raise UserError(
                    f"class {name!r} is in the subsets of {int(count)} of {self._models} models, "
                    f"but both sides need at least 2; raise `models`."
                )
        without = self._models - self._with
        mean_with, variance_with = _moments(self._with, self._sum_with, self._squares_with)
        mean_without, variance_without = _moments(
            without, self._sum - self._sum_with, self._squares - self._squares_with
        )
        return Influences(
            mean_with - mean_without,
            np.sqrt(variance_with / self._with[:, None] + variance_without / without[:, None]),
        )


def _moments(
    counts: np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and unbiased variance of each (class, column) from sums and sums of squares."""
    count = counts[:, None]
    mean = sums / count
    variance = (squares - count * mean**2) / (count - 1)
    return mean, np.maximum(variance, 0.0)


ESTIMATORS = {"difference_in_means": DifferenceInMeans}


def estimate(summary: Path, estimator: str, outcome: Outcome, names: list[str]) -> Influences:
    """Estimate influences from the summary of one (target, mode), one row group at a time.

    Args:
        summary: table with `mask` and the outcome.
        estimator: a key of `ESTIMATORS`.
        outcome: the column to explain, per example or a scalar.
        names: the source classes.

    Returns:
        Influences whose last column is on the whole target: on the mean over its examples. With a
        scalar outcome it is the only column.

    Raises:
        UserError: the masks are not as wide as `names`, or see `DifferenceInMeans.result`.
    """
    table = open_table(summary)
    accumulator = None
    for masks, outcomes in _row_groups(table, outcome, len(names), summary):
        if accumulator is None:
            accumulator = ESTIMATORS[estimator](len(names), outcomes.shape[1])
        accumulator.add(masks, outcomes)
    if accumulator is None:
        raise UserError(f"{summary}: holds no models; run the workflow again.")
    return accumulator.result(names)


def _row_groups(
    table: pq.ParquetFile, outcome: Outcome, classes: int, path: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for group in range(table.num_row_groups):
        with damage_named(path):
            rows = table.read_row_group(group, columns=["mask", outcome])
        packed = rows["mask"].to_pylist()
        if not packed:
            continue
        if len(packed[0]) != -(-classes // 8):
            raise UserError(
                f"{path}: masks of {8 * len(packed[0])} bits, but the source data set has "
                f"{classes} classes; summarize again."
            )
        yield unpack(packed, classes), _outcomes(rows[outcome])


def _outcomes(column: pa.ChunkedArray) -> np.ndarray:
    """Return outcomes as float64 (models, columns), the last column on the whole target."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy().astype(np.float64)[:, None]
    per_example = matrix(column).astype(np.float64)
    return np.hstack([per_example, per_example.mean(axis=1, keepdims=True)])


def write_influences(influences: Influences, names: list[str], path: Path, provenance: str) -> None:
    """Write one row a source class.

    Columns: `unit` (class index), `name`, `influence` and `standard_error` on the whole target, and
    `example_influence`, `example_standard_error`: float32 lists, one entry a target test example
    (empty for a scalar outcome).
    """
    table = pa.table(
        {
            "unit": pa.array(range(len(names)), pa.int32()),
            "name": names,
            "influence": influences.influence[:, -1],
            "standard_error": influences.standard_error[:, -1],
            "example_influence": list_column(influences.influence[:, :-1].astype(np.float32)),
            "example_standard_error": list_column(
                influences.standard_error[:, :-1].astype(np.float32)
            ),
        }
    )
    write_table(table, path, provenance)


def write_ranking(influences: Path, path: Path, provenance: str) -> None:
    """Rank the source classes by their influence on the whole target; ties by class index.

    Columns: `rank` (1 = most helpful), `unit`, `name`, `influence`, `standard_error`.
    """
    rows = read_table(influences, ["unit", "name", "influence", "standard_error"])
    order = np.argsort(-rows["influence"].to_numpy(), kind="stable")
    ranks = pa.array(np.arange(1, len(order) + 1), pa.int32())
    table = rows.take(pa.array(order)).add_column(0, "rank", ranks)
    write_table(table, path, provenance)
