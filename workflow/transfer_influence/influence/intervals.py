"""How sure an influence is: intervals, and which influences are really non-zero."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from transfer_influence.influence.estimators import Estimator, Fit

COVERAGE = 0.95
FALSE_DISCOVERIES = 0.05  # share of those called significant that may have no effect


@dataclass(frozen=True)
class Certainty:
    """What is known of the influence of each source class on the whole target.

    Attributes:
        standard_error: float64 (units,).
        low: lower end of the 95 % interval, float64 (units,).
        high: upper end.
        q_value: least share of false discoveries at which a class counts as non-zero.
    """

    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    q_value: np.ndarray


def closed_form(fit: Fit) -> Certainty:
    """Return intervals of the t-distribution, for a fit of one column."""
    influence, error, freedom = fit.influence[:, 0], fit.standard_error[:, 0], fit.freedom[:, 0]
    half = t.ppf((1 + COVERAGE) / 2, freedom) * error
    found = q_values(_p_values(influence, error, freedom))
    return Certainty(error, influence - half, influence + half, found)


def bootstrapped(fit: Fit, estimator: Estimator, counts: np.ndarray) -> Certainty:
    """Return percentile intervals of resampled models.

    The standard error is the closed form's, where there is one; else it is the spread of the draws.

    Args:
        fit: of the whole target.
        estimator: that made it.
        counts: int64 (draws, models), see `held_out.bootstrap`.
    """
    ends, spread = [], []
    for draws in estimator.resampled(counts, same_penalty=True):
        ends.append(np.nanquantile(draws, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2], axis=0))
        spread.append(np.nanstd(draws, axis=0, ddof=1))
    low, high = np.concatenate(ends, axis=1)
    if np.isnan(fit.standard_error).any():
        error = np.concatenate(spread)
        p_value = _p_values(fit.influence[:, 0], error, np.inf)
        return Certainty(error, low, high, q_values(p_value))
    known = closed_form(fit)
    return Certainty(known.standard_error, low, high, known.q_value)


def _p_values(influence: np.ndarray, error: np.ndarray, freedom: np.ndarray | float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.abs(influence) / error
    return np.where(influence == 0, 1.0, 2 * t.sf(size, freedom))


def q_values(p_values: np.ndarray) -> np.ndarray:
    """Return the q-value of each p-value (n,), by Benjamini & Hochberg 1995."""
    count = len(p_values)
    order = np.argsort(p_values)
    raised = p_values[order] * count / np.arange(1, count + 1)
    found = np.empty(count)
    found[order] = np.minimum(np.minimum.accumulate(raised[::-1])[::-1], 1.0)
    return found
