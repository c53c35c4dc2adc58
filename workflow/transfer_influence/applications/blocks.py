"""Influences on single target classes or examples, read a block of source units at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from transfer_influence.outcomes.tables import damage_named, matrix, open_table

Of = Literal["class", "example"]


@dataclass(frozen=True)
class Block:
    """Influences of consecutive source units on all target classes or examples.

    Attributes:
        units: numbers of the units, int64 (n,).
        names: of the units.
        influence: float32 (n, columns).
        standard_error: float32 (n, columns); NaN where the estimator has none.
        freedom: degrees of freedom of the standard errors, float64 (n,); NaN where there are none.
    """

    units: np.ndarray
    names: list[str]
    influence: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray


def has_influences(path: Path, of: Of) -> bool:
    """Return whether a table of influences has those on single target classes or examples."""
    return pa.types.is_fixed_size_list(open_table(path).schema_arrow.field(f"{of}_influence").type)


def blocks(path: Path, of: Of) -> Iterator[Block]:
    """Yield the influences row group by row group, so that memory holds one of them.

    Yields nothing where the estimator left them out, see `influence.largest_table_gb`.

    Raises:
        UserError: the file is missing or is no whole Parquet file.
    """
    if not has_influences(path, of):
        return
    file = open_table(path)
    columns = ["unit", "name", f"{of}_influence", f"{of}_standard_error", f"{of}_freedom"]
    for group in range(file.num_row_groups):
        with damage_named(path):
            rows = file.read_row_group(group, columns)
        influence, error = rows[columns[2]], rows[columns[3]]
        values = matrix(influence)
        errors = np.full_like(values, np.nan) if error.null_count else matrix(error)
        units = rows["unit"].to_numpy().astype(np.int64)
        freedom = rows[columns[4]].to_numpy().astype(np.float64)
        yield Block(units, rows["name"].to_pylist(), values, errors, freedom)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return where the `count` largest of each row are, largest first; of equal ones the first.

    Args:
        values: (rows, columns).
        count: how many to find; fewer where there are fewer columns.

    Returns:
        int64 (rows, count), indices of columns.
    """
    return np.argsort(-values, axis=1, kind="stable")[:, :count]


@dataclass(frozen=True)
class Leaders:
    """For each target class or example the source units that help, or hurt, it most.

    Each array is (places, columns), the most extreme first. Units on the wrong side of zero are
    there too, where there are too few on the right one.

    Attributes:
        units: numbers of the units, int64.
        names: of the units, objects.
        influence: float32.
        standard_error: float32; NaN where the estimator has none.
        freedom: degrees of freedom of it, float64.
    """

    units: np.ndarray
    names: np.ndarray
    influence: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray


def leaders(path: Path, of: Of, columns: np.ndarray, count: int, sign: int) -> Leaders | None:
    """Find the source units that help (`sign` 1) or hurt (-1) some target classes or examples most.

    Of units with equal influence the first one leads.

    Args:
        path: table of influences.
        of: whether columns are target classes or examples.
        columns: which of them, int64 (n,).
        count: how many units to find for each; fewer where there are fewer units.
        sign: 1 or -1.

    Returns:
        Arrays (count, n); None where the estimator left these influences out.
    """
    found: tuple[np.ndarray, ...] | None = None
    for block in blocks(path, of):
        shape = (len(block.units), len(columns))
        here: tuple[np.ndarray, ...] = (
            np.broadcast_to(block.units[:, None], shape),
            np.broadcast_to(np.array(block.names, object)[:, None], shape),
            block.influence[:, columns],
            block.standard_error[:, columns],
            np.broadcast_to(block.freedom[:, None], shape),
        )
        if found is not None:
            here = tuple(np.concatenate(parts) for parts in zip(found, here, strict=True))
        order = largest(sign * here[2].T, count).T
        found = tuple(np.take_along_axis(part, order, axis=0) for part in here)
    return None if found is None else Leaders(*found)
