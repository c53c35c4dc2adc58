"""Replicates of retrained models, side by side, and intervals of their means."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from transfer_influence.config.study import BASELINE

LEAST_REPLICATES = 3  # for an interval; below, the single models say more


def by_replicate(models: pd.DataFrame, order: str, values: str = "accuracy") -> pd.DataFrame:
    """Return the accuracies of one curve, with a row a replicate and a column a number removed.

    The curve begins at the models that lost nothing. What a replicate does not have is NaN.
    """
    rows = models[models["order"].isin([BASELINE, order])]
    return rows.pivot(index="replicate", columns="removed", values=values).astype(float)


def mean_and_ends(values: np.ndarray) -> list[float]:
    """Return the mean of some values and the ends of its 95 % t-interval, see `half_width`."""
    column = pd.Series(values, dtype=float)
    mean = column.mean()
    half = half_width(pd.Series([column.std()]), pd.Series([len(column)])).item()
    return [mean, mean - half, mean + half]


def half_width(standard_deviation: pd.Series, count: pd.Series) -> pd.Series:
    """Return half the 95 % t-interval of means of `count` values; NaN for fewer than three."""
    enough = count.where(count >= LEAST_REPLICATES)
    return stdtrit(enough - 1, 0.975) * standard_deviation / np.sqrt(enough)
