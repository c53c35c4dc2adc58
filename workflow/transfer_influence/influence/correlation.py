"""Rank correlations, and how sure they are."""

import numpy as np
from scipy.stats import norm, rankdata, t

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
    ranks = [rankdata(side, axis=0) - (len(side) + 1) / 2 for side in (one, other)]
    product = (ranks[0] * ranks[1]).sum(axis=0)
    size = np.sqrt((ranks[0] ** 2).sum(axis=0) * (ranks[1] ** 2).sum(axis=0))
    return np.divide(product, size, out=np.zeros_like(product), where=size > 0)


def interval_of_correlation(correlation: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a rank correlation (Fisher's z; Bonett & Wright 2000)."""
    if count <= 3 or not abs(correlation) < 1:
        return np.nan, np.nan
    half = norm.ppf((1 + COVERAGE) / 2) * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    centre = np.arctanh(correlation)
    return float(np.tanh(centre - half)), float(np.tanh(centre + half))


def jackknifed_interval(correlation: float, without: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean of correlations over the same models.

    The columns of outcomes share the models, so they are not independent of each other; the models
    are. So they are left out part by part: the interval is that of the mean of the pseudo-values of
    a grouped jackknife (Tukey 1958), on the scale of Fisher's z, so that it stays between -1 and 1.
    It is not quite around `correlation`: rank correlations of few models are a little too small,
    which the pseudo-values correct.

    Args:
        correlation: the mean from all models.
        without: what it is without each part of them, float64 (parts,).
    """
    parts = len(without)
    if parts < 2 or not (np.abs([correlation, *without]) < 1).all():
        return np.nan, np.nan
    pseudo = parts * np.arctanh(correlation) - (parts - 1) * np.arctanh(without)
    half = t.ppf((1 + COVERAGE) / 2, parts - 1) * np.std(pseudo, ddof=1) / np.sqrt(parts)
    return float(np.tanh(pseudo.mean() - half)), float(np.tanh(pseudo.mean() + half))
