"""How sure an influence is: intervals, and which influences are really non-zero."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import ndtr, stdtrit  # not scipy.stats, whose import takes half a second

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
        p_value: two-sided, of no influence; float64 (units,), NaN where it is not known.
        q_value: least share of false discoveries at which a class counts as non-zero.
    """

    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray


def closed_form(fit: Fit, estimator: Estimator) -> Certainty:
    """Return what the t-distribution says, for a fit of the whole target; NaN without errors."""
    p_values = estimator.p_values(fit)
    return Certainty(fit.standard_error[:, 0], *t_interval(fit), p_values, q_values(p_values))


def t_interval(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the intervals of a fit of one column, float64 (units,) each.

    The interval is of the effect without shrinkage, so that of a shrunk estimate is not around it.
    """
    influence, error, freedom, left = (
        part[:, 0] for part in (fit.influence, fit.standard_error, fit.freedom, fit.left)
    )
    half = stdtrit(freedom, (1 + COVERAGE) / 2) * error
    return (influence - half) / left, (influence + half) / left


def bootstrapped(fit: Fit, estimator: Estimator, counts: np.ndarray, groups: int) -> Certainty:
    """Return percentile intervals of resampled models; the rest by closed form.

    Percentiles lie further out for few models, as those of a t-distribution do (Hesterberg 2015,
    "expanded percentile interval").

    Args:
        fit: of the whole target.
        estimator: that made it.
        counts: int64 (draws, models), see `held_out.bootstrap`.
        groups: how many draws with replacement make one of them: models, or pairs of complements.
    """
    known = closed_form(fit, estimator)
    outside = ndtr(np.sqrt(groups / (groups - 1)) * stdtrit(groups - 1, (1 - COVERAGE) / 2))
    ends = [
        np.nanquantile(draws, [outside, 1 - outside], axis=0)
        for draws in estimator.resampled(counts, same_penalty=True)
    ]
    low, high = np.concatenate(ends, axis=1) / fit.left[:, 0]
    return replace(known, low=low, high=high)


def significant(q_values: np.ndarray) -> pa.Array:
    """Return which of some q-values (n,) are at most 5 %; null for one that is not known."""
    return pc.less_equal(pa.array(q_values, from_pandas=True), FALSE_DISCOVERIES)


def q_values(p_values: np.ndarray) -> np.ndarray:
    """Return the q-value of each p-value (n,), by Benjamini & Hochberg 1995.

    One that is not known, NaN, has none and takes no part in the others'.
    """
    found = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    order = np.flatnonzero(known)[np.argsort(p_values[known])]
    ranks = np.arange(1, len(order) + 1)
    shares = np.minimum(p_values[order] * len(order) / ranks, 1.0)
    # The least share at which a class, or one with a larger p-value, is still found.
    found[order] = np.minimum.accumulate(shares[::-1])[::-1]
    return found
