"""The order of the source classes, from the most helpful to the most harmful."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.influence.estimation import OF_ACCURACY
from transfer_influence.outcomes.tables import read_table, write_table

RANKED = ["unit", "name", "influence", "standard_error", "low", "high"]
RANKED += ["p_value", "q_value", "significant"]
RANKED += OF_ACCURACY
DIGITS = 10  # of influences, as shares of the largest; further ones are rounding


def write_ranking(influences: Path, path: Path, provenance: str) -> None:
    """Rank the source classes by their influence on the whole target; ties by class index.

    Columns: `rank` (1 = most helpful), and of the influences all that is on the whole target;
    `accuracy_rank`, the place by `accuracy_influence`, null where that is.
    """
    rows = read_table(influences, RANKED)
    by_accuracy = rows["accuracy_influence"].to_numpy()
    known = np.isfinite(by_accuracy).all()
    places = pa.array(_places(by_accuracy)) if known else pa.nulls(len(rows), pa.int32())
    write_table(ranked(rows.append_column("accuracy_rank", places)), path, provenance)


def ranked(rows: pa.Table) -> pa.Table:
    """Return a row a class, from the highest `influence` to the lowest, with its `rank`."""
    places = _places(rows["influence"].to_numpy())
    return rows.add_column(0, "rank", pa.array(places)).take(pa.array(np.argsort(places)))


def _places(influence: np.ndarray) -> np.ndarray:
    """Return the place of each class, int32 (classes,), from 1 for the largest influence."""
    # Equal influences, of classes that always come together, may differ by rounding.
    rounded = np.round(influence / (np.abs(influence).max() or 1.0), DIGITS)
    places = np.empty(len(influence), np.int32)
    places[np.argsort(-rounded, kind="stable")] = np.arange(1, len(influence) + 1)
    return places
