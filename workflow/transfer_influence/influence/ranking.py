"""The order of the source classes, from the most helpful to the most harmful."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import ndtri

from transfer_influence.influence.estimation import OF_ACCURACY
from transfer_influence.outcomes.tables import read_table, write_table

NORMAL_QUANTILE = ndtri(0.975)
RANKED = ["unit", "name", "influence", "standard_error", "low", "high"]
RANKED += ["p_value", "q_value", "significant"]
RANKED += OF_ACCURACY
DRAWS, MOST_RANKED = 1000, 10_000  # of rankings; units whose ranks are drawn
DIGITS = 10  # of influences, as shares of the largest; further ones are rounding


def write_ranking(influences: Path, path: Path, provenance: str) -> None:
    """Rank the source classes by their influence on the whole target; ties by class index.

    Columns: `rank` (1 = most helpful), and of the influences all that is on the whole target;
    `accuracy_rank`, the place by `accuracy_influence`, null where that is. How sure a rank is, see
    `rank_certainty`: `rank_low`, `rank_high`, `share_top` and `share_bottom`, null where the
    estimator has no intervals and for more than 10,000 units.
    """
    write_table(ranked(read_table(influences, RANKED)), path, provenance)


def ranked(rows: pa.Table) -> pa.Table:
    """Return a row a class, from the highest `influence` to the lowest, with all that ranks say.

    Args:
        rows: with the columns `RANKED`.
    """
    for name, column in rank_certainty(rows).items():
        rows = rows.append_column(name, column)
    by_accuracy = rows["accuracy_influence"].to_numpy()
    known = np.isfinite(by_accuracy).all()
    of_accuracy = pa.array(_places(by_accuracy)) if known else pa.nulls(len(rows), pa.int32())
    rows = rows.append_column("accuracy_rank", of_accuracy)
    places = _places(rows["influence"].to_numpy())
    return rows.add_column(0, "rank", pa.array(places)).take(pa.array(np.argsort(places)))


def rank_certainty(rows: pa.Table) -> dict[str, pa.Array]:
    """Return how much the rank of each class varies from study to study.

    A parametric bootstrap: influences are drawn from normal distributions with the intervals that
    they have, each by itself, and ranked. Where influences differ by less than their errors, ranks
    of draws vary more than those of studies, so that the intervals are on the safe side.

    Args:
        rows: `low` and `high` of the influence of each class.

    Returns:
        `rank_low` and `rank_high`, the ends of the central 95 % of the ranks; `share_top` and
        `share_bottom`, how often a class is among the first, or last, tenth of all.
    """
    names = ("rank_low", "rank_high", "share_top", "share_bottom")
    low, high = (rows[name].to_numpy() for name in ("low", "high"))
    classes = len(rows)
    if classes > MOST_RANKED or not np.isfinite(high - low).all():
        return {name: pa.nulls(classes, pa.float64()) for name in names}
    error = (high - low) / (2 * NORMAL_QUANTILE)
    drawn = np.random.default_rng(0).normal((low + high) / 2, error, (DRAWS, classes))
    ranks = np.empty((DRAWS, classes), np.int32)
    np.put_along_axis(ranks, np.argsort(-drawn, axis=1), np.arange(1, classes + 1), axis=1)
    tenth = -(-classes // 10)
    ends = np.quantile(ranks, [0.025, 0.975], axis=0, method="inverted_cdf").astype(np.float64)
    shares = (ranks <= tenth).mean(axis=0), (ranks > classes - tenth).mean(axis=0)
    return {name: pa.array(values) for name, values in zip(names, (*ends, *shares), strict=True)}


def _places(influence: np.ndarray) -> np.ndarray:
    """Return the place of each class, int32 (classes,), from 1 for the largest influence."""
    # Equal influences, of classes that always come together, may differ by rounding.
    rounded = np.round(influence / (np.abs(influence).max() or 1.0), DIGITS)
    places = np.empty(len(influence), np.int32)
    places[np.argsort(-rounded, kind="stable")] = np.arange(1, len(influence) + 1)
    return places
