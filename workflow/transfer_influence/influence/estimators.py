"""Estimators of influence: from masks and outcomes to one number a source class and column.

All of them can be told apart by what they do with the other classes, whose coming and going is
noise to a class: a difference in means leaves it in, a linear model takes it out. They share one
interface, `Estimator`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import stdtr

from transfer_influence.errors import UserError
from transfer_influence.hadamard import smallest_order
from transfer_influence.influence.measurements import (
    CHUNK,
    GIGABYTE,
    Measurements,
    Outcomes,
    unit_blocks,
)

RESULTS = 1 / 4  # share of the memory for a block of results, and the one before in use meanwhile
STRIP, LEAST_STRIP = 2**22, 64  # of a matrix at a time: bytes, columns at least


@dataclass(frozen=True)
class Fit:
    """Influences of a block of source classes on columns of outcomes.

    Each array is float64 (units, columns).

    Attributes:
        influence: the estimates.
        standard_error: of them; NaN where an estimator has no closed form.
        freedom: degrees of freedom of the t-distribution of an estimate's error, divided by its
            standard error.
        left: the share of an effect that is expected in an estimate: 1 without shrinkage.
    """

    influence: np.ndarray
    standard_error: np.ndarray
    freedom: np.ndarray
    left: np.ndarray

    def column(self, number: int) -> "Fit":
        """Return the influences on one column."""
        return self._part(np.s_[:, number : number + 1])

    def units(self, chosen: slice) -> "Fit":
        """Return the influences of some of the source classes."""
        return self._part(chosen)

    def _part(self, chosen: slice | tuple[slice, ...]) -> "Fit":
        return Fit(
            self.influence[chosen],
            self.standard_error[chosen],
            self.freedom[chosen],
            self.left[chosen],
        )


class Estimator(Protocol):
    """A way to estimate influences from the measurements that it was made with."""

    def fit(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences on columns of outcomes, in blocks of source classes, in order."""

    def p_values(self, whole: Fit) -> np.ndarray:
        """Return how likely an influence as large as each is if no class has an effect.

        Args:
            whole: the influences on the whole target.

        Returns:
            float64 (units,); NaN where there is no standard error.
        """

    def resampled(self, counts: np.ndarray, same_penalty: bool) -> Iterator[np.ndarray]:
        """Yield influences on the whole target, estimated from other collections of the models.

        Args:
            counts: int64 (draws, models), how often a collection holds each model.
            same_penalty: whether `ridge` keeps the penalty of the whole, or chooses another for
                each collection.

        Yields:
            float64 (draws, units), in blocks of source classes, in order; NaN where a collection
            does not define them.
        """


def joined(fits: Iterator[Fit]) -> Fit:
    """Put blocks of source classes together."""
    blocks = list(fits)
    return Fit(
        np.concatenate([block.influence for block in blocks]),
        np.concatenate([block.standard_error for block in blocks]),
        np.concatenate([block.freedom for block in blocks]),
        np.concatenate([block.left for block in blocks]),
    )


def t_test(influence: np.ndarray, error: np.ndarray, freedom: np.ndarray | int) -> np.ndarray:
    """Return two-sided p-values, each array (n,); 1 where influence and error are both zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.abs(influence) / error
    return np.where((influence == 0) & (error == 0), 1.0, 2 * stdtr(freedom, -size))


def need_memory(estimator: str, needed: float, memory: float) -> None:
    """Refuse what does not fit into memory.

    Raises:
        UserError: `needed` bytes are more than `memory`.
    """
    if needed > memory:
        raise UserError(
            f"influence.memory_gb: {estimator} needs about {needed / GIGABYTE:.1f} GB for its "
            f"matrices, but {memory / GIGABYTE:.1f} are left for them; raise memory_gb, lower "
            f"largest_table_gb so that single examples are left out, or estimate by "
            f"difference_in_means."
        )


def strips(rows: int, columns: int) -> Iterator[slice]:
    """Cut the columns of a float64 matrix into strips of about `STRIP` bytes."""
    width = max(LEAST_STRIP, STRIP // (8 * rows))
    for first in range(0, columns, width):
        yield slice(first, first + width)


def add_product(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Add `left @ right` to `total`, in strips, as the product would take as much memory again."""
    for strip in strips(*total.shape):
        total[:, strip] += left @ right[:, strip]


def collections(data: Measurements, counts: np.ndarray) -> Iterator[Measurements]:
    """Yield the models of each draw, as often as `counts` (draws, models) says."""
    for count in counts:
        yield data.take(np.repeat(np.arange(len(data)), count))


class DifferenceInMeans:
    """Mean outcome of the models with a class minus the mean of those without.

    With masks *M* and outcomes *Y*, the sums of the models with each class are the product *MᵀY*;
    those of the models without follow from the column sums. The standard error is Welch's, which
    lets the two groups differ in variance. Outcomes are shifted by the first model's before their
    squares are summed, so that nothing cancels (Chan, Golub & LeVeque 1983). Of models in pairs of
    complements, each pair has one on either side, so the standard error is that of paired
    differences. In blocks of balanced subsets the other classes cancel: the difference is the
    least-squares fit, and its standard error that of the residuals.

    Source of the estimator: Jain et al. 2023, section 3.1, equation 1.
    """

    def __init__(self, data: Measurements, memory: float) -> None:
        self.data = data
        self.memory = memory

    def fit(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences; one pass over the outcomes for each block of classes."""
        if self.data.design == "balanced":
            yield from self._fit_balanced(outcomes)
            return
        shift = next(outcomes.chunks())[1][0].copy()
        # Sums and sums of squares; a strip of a product; the masks of a chunk.
        each = 8 * (2 * outcomes.columns + LEAST_STRIP + 3 * CHUNK)
        for units in unit_blocks(self.data.classes, each, (1 - RESULTS) * self.memory):
            counts, sums, squares, totals, products = self._sums(units, outcomes, shift)
            # What `_difference` computes with, and the four arrays of the block before.
            for part in unit_blocks(len(counts), 8 * 18 * outcomes.columns, RESULTS * self.memory):
                yield self._difference(counts[part], sums[part], squares[part], totals, products)

    def _sums(
        self, units: slice, outcomes: Outcomes, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return how many models have each class, and sums of shifted outcomes.

        Returns:
            Models with each class (units, 1); sums and sums of squares over them (units, columns);
            the same over all models (2, columns); sums of the products of partners (columns,).
        """
        count = units.stop - units.start
        counts = np.zeros((count, 1))
        sums, squares = np.zeros((2, count, outcomes.columns))
        totals = np.zeros((2, outcomes.columns))
        products = np.zeros(outcomes.columns)
        waiting: dict[int, np.ndarray] = {}
        for models, outcome in outcomes.chunks():
            kept = self.data.masks.rows(models, units)
            outcome = outcome - shift
            counts += kept.sum(axis=0)[:, None]
            add_product(sums, kept.T, outcome)
            totals[0] += outcome.sum(axis=0)
            if self.data.design == "complement_pairs":
                for group, row in zip(self.data.groups[models], outcome, strict=True):
                    partner = waiting.pop(group, None)
                    if partner is None:
                        waiting[group] = row.copy()
                    else:
                        products += partner * row
            outcome **= 2
            add_product(squares, kept.T, outcome)
            totals[1] += outcome.sum(axis=0)
        return counts, sums, squares, totals, products

    def _difference(
        self,
        counts: np.ndarray,
        sums: np.ndarray,
        squares: np.ndarray,
        totals: np.ndarray,
        products: np.ndarray,
    ) -> Fit:
        without = len(self.data) - counts
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_with, variance_with = _moments(counts, sums, squares)
            mean_without, variance_without = _moments(
                without, totals[0] - sums, totals[1] - squares
            )
            a, b = variance_with / counts, variance_without / without
            if self.data.design == "complement_pairs":
                covariance = (products / counts - mean_with * mean_without) / (counts - 1)
                variance = np.maximum(a + b - 2 * covariance, 0.0)
                freedom = np.broadcast_to(counts - 1, variance.shape)
            else:
                variance = a + b
                freedom = variance**2 / (a**2 / (counts - 1) + b**2 / (without - 1))
                freedom = np.where(variance > 0, freedom, len(self.data) - 2)
        left = np.broadcast_to(1.0, variance.shape)
        return Fit(mean_with - mean_without, np.sqrt(variance), freedom, left)

    def _fit_balanced(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences of balanced subsets.

        One pass over the outcomes, or where classes come in blocks two for each block: the noise
        is what all classes together leave.
        """
        models, classes = len(self.data), self.data.classes
        shift = next(outcomes.chunks())[1][0].copy()
        # Differences and a strip of a product; the block before; the masks of a chunk.
        each = 8 * (3 * outcomes.columns + LEAST_STRIP + 3 * CHUNK)
        blocks = list(unit_blocks(classes, each, (1 - RESULTS) * self.memory))
        squares, sums = np.zeros((2, outcomes.columns))
        for units in blocks:
            differences, total = self._balanced_differences(units, outcomes, shift)
            sums += differences.sum(axis=0)
            squares += np.einsum("ij,ij->j", differences, differences)
        order = smallest_order(classes)
        # Of the differences' two parts, around their mean and the mean itself, the masks of a
        # matrix without a spare column leave the second one out.
        explained = squares - sums**2 / classes
        explained += sums**2 / classes * order / (order - classes) if order > classes else 0.0
        explained *= models / 4 * (order - 1) / order
        freedom = models - 1 - (classes if order > classes else classes - 1)
        left = np.maximum(total - explained, 0.0)
        noise = np.sqrt(left / freedom) if freedom else np.full_like(left, np.nan)
        for units in blocks:
            if len(blocks) > 1:
                differences, _ = self._balanced_differences(units, outcomes, shift)
            shape = differences.shape
            yield Fit(
                differences,
                np.broadcast_to(2 * noise / np.sqrt(models), shape),
                np.broadcast_to(freedom, shape),
                np.broadcast_to(1.0, shape),
            )

    def _balanced_differences(
        self, units: slice, outcomes: Outcomes, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return differences in means of equally many models (units, columns).

        Also the sum of squares of each column around its mean (columns,).
        """
        differences = np.zeros((units.stop - units.start, outcomes.columns))
        sums, squares = np.zeros((2, outcomes.columns))
        for models, outcome in outcomes.chunks():
            outcome = outcome - shift
            add_product(differences, 2 * self.data.masks.rows(models, units).T - 1, outcome)
            sums += outcome.sum(axis=0)
            squares += np.einsum("ij,ij->j", outcome, outcome)
        differences *= 2 / len(self.data)
        return differences, squares - sums**2 / len(self.data)

    def p_values(self, whole: Fit) -> np.ndarray:
        """Return p-values, see `Estimator`, by the variance of all models.

        Welch's would find too much where a class is in few subsets, or in most: the variance of a
        few outcomes may be small by chance. Without effects, both groups have that of all.
        """
        influence = whole.influence[:, 0]
        if self.data.design != "uniform":
            return t_test(influence, whole.standard_error[:, 0], whole.freedom[:, 0])
        having, outcome = self.data.masks.counts(), self.data.whole[:, 0]
        # One over it is the sum of one over the size of either group.
        size = having * (1 - having / len(self.data))
        squares = np.square(outcome - outcome.mean()).sum() - influence**2 * size
        freedom = len(self.data) - 2
        return t_test(influence, np.sqrt(np.maximum(squares, 0.0) / freedom / size), freedom)

    def resampled(self, counts: np.ndarray, same_penalty: bool) -> Iterator[np.ndarray]:
        """Yield the influences on the whole target, see `Estimator`; there is no penalty."""
        whole = Outcomes.of(self.data.whole - self.data.whole.mean())
        weights = counts.astype(np.float64)
        size = weights.sum(axis=1, keepdims=True)
        total = weights @ (self.data.whole - self.data.whole.mean())
        for units in unit_blocks(self.data.classes, 8 * (8 * len(counts) + 1024), self.memory):
            having, sums = np.zeros((2, len(counts), units.stop - units.start))
            for models, outcome in whole.chunks():
                kept = self.data.masks.rows(models, units)
                having += weights[:, models] @ kept
                sums += (weights[:, models] * outcome[:, 0]) @ kept
            with np.errstate(divide="ignore", invalid="ignore"):
                yield sums / having - (total - sums) / (size - having)


def _moments(
    count: np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and unbiased variance of each (class, column) from sums and sums of squares."""
    mean = sums / count
    variance = (squares - count * mean**2) / (count - 1)
    return mean, np.maximum(variance, 0.0)
