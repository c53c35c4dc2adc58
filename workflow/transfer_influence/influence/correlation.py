"""Rank correlations, and how sure they are."""

import numpy as np
from scipy.stats import rankdata, t

from transfer_influence.influence.intervals import COVERAGE


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation of two float64 (n,), over the entries that are finite in both.

    It is 0 where either is constant, as that says nothing of the other: `lasso` may leave out all
    classes. NaN where fewer than two entries are finite in both.
    """
    both = np.isfinite(one) & np.isfinite(other)
    return float(rank_correlations(one[both, None], other[both, None])[0])


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column (n, columns); 0 where a side is constant."""
    if len(one) < 2:
        return np.full(one.shape[1], np.nan)
    # Columns as rows, since neighbours in memory are ranked twice as fast.
    rows = (np.ascontiguousarray(side.T) for side in (one, other))
    first, second = (rankdata(each, axis=1) - (len(one) + 1) / 2 for each in rows)
    product = (first * second).sum(axis=1)
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide(product, size, out=np.zeros_like(product), where=size > 0)


def jackknifed_intervals(correlations: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return the 95 % intervals of correlations over models, or of their means over outcomes.

    Models drawn together are not independent, nor are outcomes that share their models. So models
    are left out part by part, partners together: the interval is that of the mean of the
    pseudo-values of a grouped jackknife (Tukey 1958), on the scale of Fisher's z, so that it stays
    between -1 and 1. It is not quite around the correlation: rank correlations of few models are a
    little too small, which the pseudo-values correct.

    Args:
        correlations: from all models, float64 (n,).
        without: what they are without each part of the models, float64 (parts, n).

    Returns:
        Low and high ends, float64 (n, 2); NaN where a correlation is not defined, or is 1 or -1.
    """
    parts = len(without)
    inside = (np.abs([correlations, *without]) < 1).all(axis=0) & (parts > 1)
    every, left = np.where(inside, correlations, np.nan), np.where(inside, without, np.nan)
    pseudo = parts * np.arctanh(every) - (parts - 1) * np.arctanh(left)
    centre, half = pseudo.mean(axis=0), np.full(len(correlations), np.nan)
    if parts > 1:
        error = np.std(pseudo, axis=0, ddof=1) / np.sqrt(parts)
        half = t.ppf((1 + COVERAGE) / 2, parts - 1) * error
    return np.tanh(np.stack([centre - half, centre + half], axis=1))
