"""The sparse linear datamodel: few source classes, each with a coefficient of its own."""

from collections.abc import Iterator

import numba
import numpy as np

from transfer_influence.errors import UserError
from transfer_influence.influence.estimators import (
    Fit,
    collections,
    joined,
    need_memory,
)
from transfer_influence.influence.held_out import split
from transfer_influence.influence.measurements import Measurements, Outcomes, unit_blocks

PENALTIES = 50
# Smallest penalty, as a share of the one that leaves no class in. With fewer models than classes,
# smaller ones take for ever and predict nothing (Friedman, Hastie & Tibshirani 2010, section 2.5).
SMALLEST, SMALLEST_OF_FEW = 1e-3, 1e-2
LEAST_GROUPS = 4
TOLERANCE = 1e-6  # change of a coefficient in a sweep, as a share of the largest penalty
MOST_SWEEPS = 1000
PATIENCE = 20  # penalties in a row that predict worse, after which smaller ones are not tried


class Lasso:
    """Coefficients *β* that minimise *‖Y − Xβ‖² / 2N + α‖β‖₁* for centred masks *X* and outcomes.

    Each column is fitted over a path of 50 penalties *α* to a part of the models; the one that
    predicts the held-out models best is used to fit all models. Masks and outcomes enter as the
    products *XᵀX* and *XᵀY* only, which are sums over models (coordinate descent with covariance
    updates: Friedman, Hastie & Tibshirani 2010). There is no standard error: neither has it a
    closed form, nor do bootstrap intervals of it cover the effects.

    Source of the estimator: Ilyas et al. 2022, section 2.
    """

    def __init__(self, data: Measurements, memory: float, held_out: float, seed: int) -> None:
        count, classes = len(data), data.classes
        need_memory("lasso", 8 * (2 * count * classes + 3 * classes**2), memory)
        self.data = data
        self.memory = memory
        self._held_out, self._seed = held_out, seed
        _, judges = split(data, held_out, seed)
        if len(np.unique(data.groups)) < LEAST_GROUPS:
            raise UserError(
                f"influence.estimators: lasso cannot hold out some of {count} models to choose its "
                f"penalty; raise `models`, or leave lasso out."
            )
        self._judge = np.isin(np.arange(count), judges)
        masks = data.masks.rows(np.arange(count))
        masks -= masks.mean(axis=0)
        self._masks = masks
        self._gram = masks.T @ masks / count
        part = masks[~self._judge]
        self._mean = part.mean(axis=0)
        self._part_gram = (part - self._mean).T @ (part - self._mean) / len(part)
        judge = masks[self._judge] - self._mean
        self._judge_sum = judge.sum(axis=0)
        self._judge_gram = judge.T @ judge
        least = SMALLEST if len(part) > classes else SMALLEST_OF_FEW
        self._path = np.geomspace(1, least, PENALTIES)

    def fit(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences, after one pass over the outcomes."""
        need_memory("lasso", 8 * outcomes.columns * 3 * self.data.classes, self.memory)
        influence = self._coefficients(outcomes)[0].T
        for units in unit_blocks(self.data.classes, 8 * 3 * outcomes.columns, self.memory / 4):
            unknown = np.full_like(influence[units], np.nan)
            yield Fit(influence[units], unknown, unknown, unknown)

    def _coefficients(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Return the coefficients (columns, units) and the penalty of each column."""
        products = np.zeros((2, outcomes.columns, self.data.classes))  # of fitted, of judges
        sums, squares = np.zeros((2, 2, outcomes.columns))
        shift = None
        for models, outcome in outcomes.chunks():
            shift = outcome[0].copy() if shift is None else shift
            outcome -= shift
            for number, side in enumerate([~self._judge[models], self._judge[models]]):
                values = outcome[side]
                products[number] += values.T @ self._masks[models[side]]
                sums[number] += values.sum(axis=0)
                squares[number] += np.einsum("ij,ij->j", values, values)
        count = len(self.data)
        every = (products[0] + products[1]) / count
        penalties = self._choose(products, sums, squares)
        found = np.zeros_like(every)
        _fit_each(self._gram, every, penalties, self._path, found)
        return found, penalties

    def _choose(self, products: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
        """Return the penalty of each column that predicts the held-out models best."""
        judges = int(self._judge.sum())
        fitted = len(self.data) - judges
        mean = sums[0] / fitted
        own = products[0] / fitted - np.outer(mean, self._mean)
        # Of the judges, around the means of the fitted models, which a prediction starts from.
        other = products[1] - np.outer(sums[1], self._mean) - np.outer(mean, self._judge_sum)
        total = squares[1] - 2 * mean * sums[1] + judges * mean**2
        return _choose_each(self._part_gram, own, self._judge_gram, other, total, self._path)

    def resampled(self, counts: np.ndarray, same_penalty: bool) -> Iterator[np.ndarray]:
        """Yield the influences on the whole target, see `Estimator`; one block."""
        rows = []
        for data in collections(self.data, counts):
            again = Lasso(data, self.memory, self._held_out, self._seed)
            rows.append(joined(again.fit(Outcomes.of(data.whole))).influence[:, 0])
        yield np.array(rows)


@numba.njit
def _descend(
    gram: np.ndarray, product: np.ndarray, penalty: float, found: np.ndarray, pull: np.ndarray
) -> None:
    """Minimise *βᵀGβ/2 − βᵀb + α‖β‖₁* from `found` on, in place; `pull` is *Gβ*, kept in step."""
    enough = TOLERANCE * np.abs(product).max()
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for unit in range(len(found)):
            curvature = gram[unit, unit]
            if curvature < 1e-12:  # a class that all models have, or none
                continue
            slope = product[unit] - pull[unit] + curvature * found[unit]
            size = max(abs(slope) - penalty, 0.0) / curvature
            change = (size if slope > 0.0 else -size) - found[unit]
            if change != 0.0:
                found[unit] += change
                pull += change * gram[unit]
                largest = max(largest, abs(change) * curvature)
        if largest <= enough:
            return


@numba.njit
def _fit_each(
    gram: np.ndarray,
    products: np.ndarray,
    penalties: np.ndarray,
    path: np.ndarray,
    found: np.ndarray,
) -> None:
    """Fit each column with its penalty, by way of the larger ones of the path: that is faster."""
    for column in range(len(products)):
        product, pull = products[column], np.zeros(len(gram))
        for penalty in path * np.abs(product).max():
            if penalty > penalties[column]:
                _descend(gram, product, penalty, found[column], pull)
        _descend(gram, product, penalties[column], found[column], pull)


@numba.njit
def _choose_each(
    gram: np.ndarray,
    products: np.ndarray,
    judge_gram: np.ndarray,
    judge_products: np.ndarray,
    judge_squares: np.ndarray,
    path: np.ndarray,
) -> np.ndarray:
    """Return, for each column, the penalty of the path with the least squared error of judges."""
    chosen = np.zeros(len(products))
    for column in range(len(products)):
        product = products[column]
        found, pull = np.zeros(len(product)), np.zeros(len(product))
        least, largest, worse = np.inf, np.abs(product).max(), 0
        for penalty in path * largest:
            _descend(gram, product, penalty, found, pull)
            predicted = found @ (judge_gram @ found) - 2.0 * (found @ judge_products[column])
            worse += 1
            if judge_squares[column] + predicted < least:
                least, chosen[column] = judge_squares[column] + predicted, penalty
                worse = 0
            if worse == PATIENCE:
                break
    return chosen
