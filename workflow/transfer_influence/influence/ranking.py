"""The order of the source classes, from the most helpful to the most harmful."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.outcomes.tables import read_table, write_table

RANKED = ["unit", "name", "influence", "standard_error", "low", "high"]
RANKED += ["p_value", "q_value", "significant"]
DIGITS = 10  # of influences, as shares of the largest; further ones are rounding


def write_ranking(influences: Path, path: Path, provenance: str) -> None:
    """Rank the source classes by their influence on the whole target; ties by class index.

    Columns: `rank` (1 = most helpful), and of the influences all that is on the whole target.
    """
    write_table(ranked(read_table(influences, RANKED)), path, provenance)


def ranked(rows: pa.Table) -> pa.Table:
    """Return a row a class, from the highest `influence` to the lowest, with its `rank`."""
    influence = rows["influence"].to_numpy()
    # Equal influences, of classes that always come together, may differ by rounding.
    rounded = np.round(influence / (np.abs(influence).max() or 1.0), DIGITS)
    order = np.argsort(-rounded, kind="stable")
    ranks = pa.array(np.arange(1, len(order) + 1), pa.int32())
    return rows.take(pa.array(order)).add_column(0, "rank", ranks)
