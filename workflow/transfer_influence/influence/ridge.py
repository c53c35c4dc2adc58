"""The linear datamodel with a quadratic penalty."""

from collections.abc import Iterator

import numpy as np

from transfer_influence.influence.estimators import (
    RESULTS,
    Fit,
    add_product,
    collections,
    joined,
    need_memory,
    strips,
    t_test,
)
from transfer_influence.influence.measurements import Measurements, Outcomes, unit_blocks

PENALTIES = np.logspace(-3, 4, 57)  # times the mean eigenvalue of the masks
LEAST_EIGENVALUE = 1e-9  # of the largest; below, a direction in which masks do not differ


class Ridge:
    """Coefficients of the ridge regression of outcomes on centred masks, by closed form.

    With centred masks *X = U S Vᵀ*, from one eigendecomposition of the smaller of *XᵀX* and *XXᵀ*,
    the coefficients for penalty *λ* are *V S (S² + λ)⁻¹ UᵀY*. The outcomes are only needed as *UᵀY*
    and as their variance, which are sums over models. Each column has the penalty that minimises
    generalised cross-validation, *N · RSS / (N − 1 − df)²* (Golub, Heath & Wahba 1979).

    An effect comes out shrunk, by a share *r* of it that is left: *r* is the diagonal of
    *R = (XᵀX + λ)⁻¹XᵀX*, over that of the same matrix without penalty. The rest of *R* mixes in the
    other classes. With effects of the variance that the penalty stands for, *σ²/λ*, noise and
    mixture have together the variance *σ² R (1 − r) / λ*. Its root is the standard error, of a
    coefficient around *r* times the effect. So intervals hold for any penalty: for a small one they
    are those of least squares, for a large one those of a difference in means.

    Where all subsets have one size, a common change of all coefficients changes nothing, so they
    sum to zero: a coefficient is what a class has beyond the mean of all classes.
    """

    def __init__(self, data: Measurements, memory: float, penalty: float | None = None) -> None:
        count, classes = len(data), data.classes
        rank = min(count, classes)
        # Masks and a matrix of singular vectors; an eigendecomposition with its workspace.
        need_memory("ridge", 8 * (2 * count * classes + 5 * rank**2), memory)
        self.data = data
        self.memory = memory
        masks = data.masks.rows(np.arange(count))
        self._one_size = np.ptp(masks.sum(axis=1)) == 0
        masks -= masks.mean(axis=0)
        if classes <= count:
            squares, right = _eigen(masks.T @ masks)
            left = masks @ right
            left /= np.sqrt(squares)
        else:
            squares, left = _eigen(masks @ masks.T)
            right = masks.T @ left
            right /= np.sqrt(squares)
        self._squares = squares  # S², (rank,)
        self._left = left  # U, (models, rank)
        self._right = right  # V, (units, rank)
        self._held = left.nbytes + right.nbytes
        self._penalties = squares.mean() * PENALTIES if penalty is None else np.array([penalty])
        self._shrunk = squares / (squares + self._penalties[:, None])  # (penalties, rank)
        self._left_over = count - 1 - self._shrunk.sum(axis=1)  # degrees of freedom, (penalties,)

    def fit(self, outcomes: Outcomes) -> Iterator[Fit]:
        """Yield the influences, after one pass over the outcomes."""
        rank, columns = len(self._squares), outcomes.columns
        needed = self._held + 8 * columns * (rank + 5)
        need_memory("ridge", needed, (1 - RESULTS) * self.memory)
        projected, total = self._project(outcomes)
        chosen, noise = np.empty(columns, np.int64), np.empty(columns)
        for strip in strips(rank, columns):
            chosen[strip], noise[strip] = self._choose(projected[:, strip], total[strip])
            projected[:, strip] *= (self._shrunk[chosen[strip]] / np.sqrt(self._squares)).T
        # Four arrays, the three of the block before, and matrices of rank and of penalties.
        each = 8 * (7 * columns + 2 * rank + 4 * len(self._penalties))
        for units in unit_blocks(self.data.classes, each, RESULTS * self.memory):
            right = self._right[units]
            resolution = right**2 @ self._shrunk.T  # the diagonal of R, (units, penalties)
            left = resolution / (1 - 1 / self.data.classes if self._one_size else 1.0)
            error = np.sqrt(resolution * np.maximum(1 - left, 0.0) / self._penalties)
            influence = right @ projected
            freedom = np.broadcast_to(self._left_over[chosen], influence.shape)
            yield Fit(influence, error[:, chosen] * noise, freedom, left[:, chosen])

    def _project(self, outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Return *UᵀY* (rank, columns) and each column's sum of squares around its mean."""
        projected = np.zeros((len(self._squares), outcomes.columns))
        sums, squares = np.zeros((2, outcomes.columns))
        shift = None
        for models, outcome in outcomes.chunks():
            shift = outcome[0].copy() if shift is None else shift
            outcome -= shift  # changes nothing but rounding, as the columns of U sum to zero
            add_product(projected, self._left[models].T, outcome)
            sums += outcome.sum(axis=0)
            squares += np.einsum("ij,ij->j", outcome, outcome)
        return projected, np.maximum(squares - sums**2 / len(self.data), 0.0)

    def _choose(self, projected: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each column's penalty, and its standard deviation of the noise."""
        explained = projected**2
        unseen = np.maximum(total - explained.sum(axis=0), 0.0)
        residual = unseen + (1 - self._shrunk) ** 2 @ explained  # (penalties, columns)
        left_over = self._left_over[:, None]
        chosen = np.argmin(residual / left_over**2, axis=0)
        columns = np.arange(len(chosen))
        return chosen, np.sqrt(residual[chosen, columns] / self._left_over[chosen])

    def penalty(self) -> float:
        """Return the penalty chosen for the whole target."""
        projected, total = self._project(Outcomes.of(self.data.whole))
        return float(self._penalties[self._choose(projected, total)[0][0]])

    def p_values(self, whole: Fit) -> np.ndarray:
        """Return p-values, see `Estimator`, by the standard errors."""
        return t_test(whole.influence[:, 0], whole.standard_error[:, 0], whole.freedom[:, 0])

    def resampled(self, counts: np.ndarray, same_penalty: bool) -> Iterator[np.ndarray]:
        """Yield the influences on the whole target, see `Estimator`; one block."""
        penalty = self.penalty() if same_penalty else None
        found = np.empty((len(counts), self.data.classes))
        left = self.memory - self._held - found.nbytes
        for row, data in zip(found, collections(self.data, counts), strict=True):
            fits = Ridge(data, left, penalty).fit(Outcomes.of(data.whole))
            row[:] = joined(fits).influence[:, 0]
        yield found


def _eigen(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues above rounding error, and their vectors in columns."""
    values, vectors = np.linalg.eigh(gram)
    there = values > LEAST_EIGENVALUE * values[-1]
    return values[there], vectors[:, there]
