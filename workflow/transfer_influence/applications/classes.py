"""Which source classes help and hurt a target most."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.influence.ranking import RANKED
from transfer_influence.outcomes.tables import read_table

SIDE = 20  # source classes listed at either end of a ranking


def list_extremes(ranking: Path) -> pa.Table:
    """Return the 20 most helpful and the 20 most harmful source classes, each once.

    Columns: those of the ranking.
    """
    rows = read_table(ranking, ["rank", *RANKED]).sort_by("rank")
    ends = np.unique(np.r_[: min(SIDE, len(rows)), max(0, len(rows) - SIDE) : len(rows)])
    return rows.take(pa.array(ends))
