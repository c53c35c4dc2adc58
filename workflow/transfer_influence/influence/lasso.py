"""The sparse linear datamodel: few source classes, each with a coefficient of its own."""

from collections.abc import Iterator

import numba
import numpy as np

from transfer_influence.errors import UserError
from transfer_influence.influence.estimators import (
    RESULTS,
    Fit,
    add_product,
    collections,
    joined,
    need_memory,
)
from transfer_influence.influence.held_out import split
from transfer_influence.influence.measurements import Measurements, Outcomes, unit_blocks
from transfer_influence.subsets import LEAST_GROUPS

PENALTIES = 50
# Smallest penalty, as a share of the one that leaves no class in. With fewer models than classes,
# smaller ones take for ever and predict nothing (Friedman, Hastie & Tibshirani 2010, section 2.5).
SMALLEST, SMALLEST_OF_FEW = 1e-3, 1e-2
PATIENCE = 20  # penalties in a row that predict worse, after which smaller ones are not tried
# Change of a coefficient in a sweep, as a share of the largest penalty: to choose a penalty by, and
# of the result. On the way, what is left of the error hardly changes a prediction.
ROUGH, FINE = 1e-4, 1e-6
MOST_SWEEPS = 1000
# Sweeps after which coefficients go on straight to where they tend, and the largest share of a
# sweep's change that the next one is taken to make.
LEAP, STEADIEST = 5, 0.98
# Classes whose slopes are computed in one product, and columns that are fitted at a time: enough to
# be fast, and few enough for their coefficients to stay in the processor's cache.
CLASSES_AT_A_TIME, COLUMNS_AT_A_TIME = 64, 256
ROUNDING = 1e-12  # of outcomes; a product below this share of them is zero


class Lasso:
    """Coefficients *β* that minimise *‖Y − Xβ‖² / 2N + α‖β‖₁* for centred masks *X* and outcomes.

    Each column is fitted over a path of 50 penalties *α* to a part of the models; the one that
    predicts the held-out models best is used to fit all models, from the coefficients of the part
    on. Masks and outcomes enter as the products *XᵀX* and *XᵀY* only, which are sums over models
    (coordinate descent with covariance updates: Friedman, Hastie & Tibshirani 2010). There is no
    standard error: neither has it a closed form, nor do intervals by bootstrap cover the effects.

    Source of the estimator: Ilyas et al. 2022, section 2.
    """

    def __init__(self, data: Measurements, memory: float, held_out: float, seed: int) -> None:
        count, classes = len(data), data.classes
        # Masks, and those of the judges; up to six products of them at once.
        need_memory("lasso", 8 * (2 * count * classes + 6 * classes**2), memory)
        self.data = data
        self.memory = memory
        self._held_out, self._seed = held_out, seed
        _, judges = split(data.partners, held_out, seed)
        if len(np.unique(data.partners)) < LEAST_GROUPS:
            raise UserError(
                f"influence.estimators: lasso cannot hold out some of {count} models to choose its "
                f"penalty; raise `models`, or leave lasso out."
            )
        self._judge = np.isin(np.arange(count), judges)
        fitted = count - len(judges)
        masks = data.masks.rows(np.arange(count))
        masks -= masks.mean(axis=0)
        squares = masks.T @ masks
        judge = masks[self._judge]
        # Of the fitted models, by what the judges leave of the sums over all models.
        self._mean = -judge.sum(axis=0) / fitted
        part = (squares - judge.T @ judge) / fitted - np.outer(self._mean, self._mean)
        # The path is rough anyhow, and half as wide numbers are twice as fast.
        self._part_gram = part.astype(np.float32)
        self._masks = masks
        self._gram = squares / count
        judge -= self._mean
        self._judge_sum = judge.sum(axis=0)
        self._judge_gram = judge.T @ judge
        self._held = masks.nbytes + 3 * squares.nbytes
        self._path = np.geomspace(1, SMALLEST if fitted > classes else SMALLEST_OF_FEW, PENALTIES)

    def fit(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences, after one pass over the outcomes."""
        classes, columns = self.data.classes, outcomes.columns
        # Two products with the masks, and what one batch of columns is fitted with.
        each = 2 * columns + 16 * min(columns, COLUMNS_AT_A_TIME)
        needed = self._held + 8 * classes * each
        need_memory("lasso", needed, (1 - RESULTS) * self.memory)
        influence = self._coefficients(outcomes)[0]
        for units in unit_blocks(classes, 8 * columns, RESULTS * self.memory):
            unknown = np.broadcast_to(np.nan, influence[units].shape)
            yield Fit(influence[units], unknown, unknown, unknown)

    def _coefficients(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (units, columns) and the penalty of each column."""
        fitted, judged, sums, squares = self._products(outcomes)
        penalties = np.empty(outcomes.columns)
        for first in range(0, outcomes.columns, COLUMNS_AT_A_TIME):
            batch = slice(first, first + COLUMNS_AT_A_TIME)
            every = (fitted[:, batch] + judged[:, batch]) / len(self.data)
            penalties[batch], found = self._choose(
                fitted[:, batch], judged[:, batch], sums[:, batch], squares[:, batch]
            )
            _descend(self._gram, every, penalties[batch], found, FINE * np.abs(every).max(axis=0))
            fitted[:, batch] = found
        return fitted, penalties

    def _products(
        self, outcomes: Outcomes
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sums over the fitted models and over the judges, of shifted outcomes.

        Returns:
            Of their products with the masks, (units, columns) each; of outcomes, and of their
            squares, (2, columns).
        """
        products = [np.zeros((self.data.classes, outcomes.columns)) for _ in range(2)]
        sums, squares = np.zeros((2, 2, outcomes.columns))
        shift = None
        for models, outcome in outcomes.chunks():
            shift = outcome[0].copy() if shift is None else shift
            outcome -= shift
            for number, side in enumerate([~self._judge[models], self._judge[models]]):
                values = outcome[side]
                add_product(products[number], self._masks[models[side]].T, values)
                sums[number] += values.sum(axis=0)
                squares[number] += np.einsum("ij,ij->j", values, values)
        return products[0], products[1], sums, squares

    def _choose(
        self, fitted: np.ndarray, judged: np.ndarray, sums: np.ndarray, squares: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the penalty of each column that predicts the held-out models best.

        Returns:
            The penalties (columns,), infinite where the fitted models have one outcome; and the
            coefficients that they give the fitted models (units, columns).
        """
        judges = int(self._judge.sum())
        count = len(self.data) - judges
        mean = sums[0] / count
        own = fitted / count - np.outer(self._mean, mean)
        # Of the judges, around the means of the fitted models, which a prediction starts from.
        other = judged - np.outer(self._mean, sums[1]) - np.outer(self._judge_sum, mean)
        total = squares[1] - 2 * mean * sums[1] + judges * mean**2
        largest = np.abs(own).max(axis=0)
        largest[largest <= ROUNDING * np.sqrt(squares[0] / count)] = np.inf
        enough = ROUGH * largest
        own = own.astype(np.float32)
        found = before = best = np.zeros_like(own)
        penalties, worse = np.zeros_like(largest), np.zeros(len(largest), np.int64)
        least = np.full(len(largest), np.inf)
        for share in self._path:
            # Coefficients are piecewise linear in the penalty: go on straight from the last two.
            found, before = found + np.float32(self._path[1]) * (found - before), found
            _descend(self._part_gram, own, (share * largest).astype(np.float32), found, enough)
            predicted = np.einsum("ij,ij->j", found, self._judge_gram @ found - 2.0 * other)
            better = (total + predicted < least) & (worse < PATIENCE)
            least = np.where(better, total + predicted, least)
            penalties = np.where(better, share * largest, penalties)
            best = np.where(better, found, best)
            worse = np.where(better, 0, worse + 1)
            enough[worse >= PATIENCE] = np.inf  # one sweep a penalty, until no other goes on
            if np.isinf(enough).all():
                break
        return penalties, best.astype(np.float64)

    def p_values(self, whole: Fit) -> np.ndarray:
        """Return p-values, see `Estimator`: unknown."""
        return np.full(len(whole.influence), np.nan)

    def resampled(self, counts: np.ndarray, same_penalty: bool) -> Iterator[np.ndarray]:
        """Yield the influences on the whole target, see `Estimator`; one block."""
        found = np.empty((len(counts), self.data.classes))
        left = self.memory - self._held - found.nbytes
        for row, data in zip(found, collections(self.data, counts), strict=True):
            again = Lasso(data, left, self._held_out, self._seed)
            row[:] = joined(again.fit(Outcomes.of(data.whole))).influence[:, 0]
        yield found


def _descend(
    gram: np.ndarray,
    products: np.ndarray,
    penalties: np.ndarray,
    found: np.ndarray,
    enough: np.ndarray,
) -> None:
    """Minimise *βᵀGβ/2 − βᵀb + α‖β‖₁* of each column from `found` on, in place.

    A column is done, and left alone, after a sweep that has changed no slope by more than `enough`.

    Args:
        gram: *G*, (units, units).
        products: *b*, (units, columns).
        penalties: *α*, (columns,).
        found: *β*, (units, columns).
        enough: (columns,).
    """
    going, part = np.arange(len(penalties)), found.copy()
    change = last = np.zeros_like(part)
    for number in range(MOST_SWEEPS):
        if number % LEAP == 0:
            part += _rest(change, last) * (part != 0)
        before, last = part.copy(), change
        more = _sweep(gram, products, penalties, part) > enough[going]
        change = part - before
        if not more.all():
            found[:, going] = part
            if not more.any():
                return
            going, penalties = going[more], penalties[more]
            products, part, change, last = (
                each.compress(more, axis=1) for each in (products, part, change, last)
            )
    found[:, going] = part


def _rest(change: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return all further changes together, if each is to the one before as `change` to `last`.

    What converges last is a common change of most coefficients, as that hardly changes the
    predictions where all subsets have one size; it is geometric (Aitken's method).
    """
    square = np.maximum(np.einsum("ij,ij->j", last, last), np.finfo(last.dtype).tiny)
    share = np.clip(np.einsum("ij,ij->j", change, last) / square, 0, STEADIEST)
    return change * (share / (1 - share))


def _sweep(
    gram: np.ndarray, products: np.ndarray, penalties: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """Minimise over each coefficient once, in place; return the largest change of a slope."""
    largest = np.zeros_like(penalties)
    for first in range(0, len(gram), CLASSES_AT_A_TIME):
        units = slice(first, first + CLASSES_AT_A_TIME)
        slopes = products[units] - gram[units] @ found
        _update(gram[units, units], slopes, penalties, found[units], largest)
    return largest


@numba.njit
def _update(
    gram: np.ndarray,
    slopes: np.ndarray,
    penalties: np.ndarray,
    found: np.ndarray,
    largest: np.ndarray,
) -> None:
    """Sweep over some units, whose `slopes` *b − Gβ* are kept in step; `largest` as in `_sweep`."""
    change = np.empty_like(penalties)
    for unit in range(len(gram)):
        curvature = gram[unit, unit]
        if curvature < 1e-12:  # a class that all models have, or none
            continue
        for column in range(len(penalties)):
            slope = slopes[unit, column] + curvature * found[unit, column]
            size = max(abs(slope) - penalties[column], 0.0) / curvature
            change[column] = (size if slope > 0.0 else -size) - found[unit, column]
            found[unit, column] += change[column]
            largest[column] = max(largest[column], abs(change[column]) * curvature)
        for other in range(unit + 1, len(gram)):
            for column in range(len(penalties)):
                slopes[other, column] -= gram[other, unit] * change[column]
