"""Which of the extreme influences are beyond chance, among all that were searched for them.

The largest of a million influences is large where no class has any effect. So an extreme influence
is judged by its q-value (Benjamini & Hochberg 1995) among all influences that it was chosen from.
There may be too many of these to sort: they are counted, in one pass, by intervals of p-values.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtr

from transfer_influence.applications.blocks import Of, blocks

Side = Literal[1, -1, 0]  # helpful, harmful, both

# A q-value is too large by at most the ratio of two of these. One above 0.2 is not told from 1.
P_VALUES = np.append(np.exp(np.arange(np.log(1e-300), np.log(0.2), 0.01)), 1.0)


@dataclass(frozen=True)
class Chance:
    """How many of all influences have a p-value up to each of `P_VALUES`.

    Attributes:
        side: which p-values: one-sided, of helpful or harmful influences, or two-sided.
        counts: int64, one for each of `P_VALUES`; 0 where no standard errors are known.
    """

    side: Side
    counts: np.ndarray

    @classmethod
    def of(cls, influences: Path, of: Of, side: Side) -> "Chance":
        """Count the p-values of all influences on single target classes or examples."""
        counts = np.zeros(len(P_VALUES), np.int64)
        # Below, a p-value is above 0.2 by a normal distribution, and so by any t-distribution.
        least = -ndtri(P_VALUES[-2] / (1 if side else 2))
        for block in blocks(influences, of):
            known = np.isfinite(block.freedom)
            sizes = _sizes(block.influence[known], block.standard_error[known], side)
            row, column = np.nonzero(sizes >= least)
            p_values = _p_values(sizes[row, column], block.freedom[known][row], side)
            places = np.searchsorted(P_VALUES, p_values)
            counts += np.bincount(places, minlength=len(P_VALUES))
            counts[-1] += sizes.size - len(row)
        return cls(side, np.cumsum(counts))

    @functools.cached_property
    def _least_shares(self) -> np.ndarray:
        """The q-value of each of `P_VALUES`."""
        with np.errstate(divide="ignore"):
            shares = P_VALUES * self.counts[-1] / self.counts
        return np.minimum(np.minimum.accumulate(shares[::-1])[::-1], 1.0)

    def q_values(
        self, influence: np.ndarray, standard_error: np.ndarray, freedom: np.ndarray
    ) -> np.ndarray:
        """Return the q-values of some of the influences, NaN where no standard error is known.

        Args:
            influence: of any shape.
            standard_error: of the same shape.
            freedom: degrees of freedom of it.
        """
        if not influence.size or not self.counts[-1]:
            return np.full(influence.shape, np.nan)
        p_values = _p_values(_sizes(influence, standard_error, self.side), freedom, self.side)
        places = np.searchsorted(P_VALUES, p_values).clip(max=len(P_VALUES) - 1)
        return np.where(np.isfinite(p_values), self._least_shares[places], np.nan)


def _p_values(sizes: np.ndarray, freedom: np.ndarray, side: Side) -> np.ndarray:
    """Return the p-values of influences in standard errors."""
    return (1 if side else 2) * stdtr(freedom, -sizes.astype(np.float64))


def _sizes(influence: np.ndarray, standard_error: np.ndarray, side: Side) -> np.ndarray:
    """Return influences in standard errors, positive on the side that is asked for."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.where(influence == 0, 0, influence / standard_error)
    return side * sizes if side else np.abs(sizes)
