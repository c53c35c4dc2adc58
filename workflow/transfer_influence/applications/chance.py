"""Which of the extreme influences are beyond chance, among all that were searched for them.

The largest of a million influences is large where no class has any effect. So an extreme influence
is judged by its q-value (Benjamini & Hochberg 1995) among all influences that it was chosen from.
There may be too many of these to sort: they are counted, in one pass, by intervals of p-values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

from transfer_influence.applications.blocks import Block, Of, blocks
from transfer_influence.influence.intervals import FALSE_DISCOVERIES

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
        for block in blocks(influences, of):
            for freedom in np.unique(block.freedom[np.isfinite(block.freedom)]):
                rows = block.freedom == freedom
                counts += _counts(block, rows, freedom, side)
        return cls(side, np.cumsum(counts))

    def q_values(
        self, influence: np.ndarray, standard_error: np.ndarray, freedom: np.ndarray
    ) -> np.ndarray:
        """Return the q-values of some of the influences, NaN where no standard error is known.

        Args:
            influence: (n,).
            standard_error: (n,).
            freedom: degrees of freedom of it, (n,).
        """
        if not len(influence) or not self.counts[-1]:
            return np.full(len(influence), np.nan)
        size = _sizes(influence.astype(np.float64), standard_error.astype(np.float64), self.side)
        p_value = (1 if self.side else 2) * stdtr(freedom, -size)
        with np.errstate(divide="ignore"):
            shares = P_VALUES * self.counts[-1] / self.counts
        least = np.minimum.accumulate(shares[::-1])[::-1]
        place = np.searchsorted(P_VALUES, p_value).clip(max=len(P_VALUES) - 1)
        return np.where(np.isfinite(p_value), np.minimum(least[place], 1.0), np.nan)


def beyond(q_values: np.ndarray) -> np.ndarray:
    """Return which influences are beyond chance, objects (n,); None where that is not known."""
    found = (q_values <= FALSE_DISCOVERIES).astype(object)
    found[np.isnan(q_values)] = None
    return found


def _counts(block: Block, rows: np.ndarray, freedom: float, side: Side) -> np.ndarray:
    """Return how many influences of some rows have a p-value in each interval of `P_VALUES`."""
    sizes = _sizes(block.influence[rows], block.standard_error[rows], side)
    # The sizes at which p-values are those of the intervals, smallest first.
    edges = -stdtrit(freedom, P_VALUES[:-1] / (1 if side else 2))[::-1]
    large = sizes[sizes >= edges[0]]
    found = np.bincount(np.searchsorted(edges, large, side="right"), minlength=len(edges) + 1)
    counts = np.append(found[1:][::-1], sizes.size - len(large))
    return counts.astype(np.int64)


def _sizes(influence: np.ndarray, standard_error: np.ndarray, side: Side) -> np.ndarray:
    """Return influences in standard errors, positive on the side that is asked for."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.where(influence == 0, 0, influence / standard_error)
    return side * sizes if side else np.abs(sizes)
