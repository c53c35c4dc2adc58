"""How well a model should transfer, by formulas that train nothing; and what a class adds to that.

The three scores judge a whole model. A class is judged by what the score loses when the model no
longer knows the class: its output is left out, and the predictions are made of the others, as they
are of a classifier by class means that has not seen the images of the class.
"""

from collections.abc import Callable

import numpy as np

MOST_STEPS = 1000
TOLERANCE = 1e-10  # of a step of `logme`, relative
LARGEST_RATIO = 1e12  # of the two precisions of `logme`: beyond, features explain nothing, or all
LEAST_VARIANCE = 1e-12  # of the largest; below, rounding

Score = Callable[[np.ndarray, np.ndarray], float]


def without_each_class(score: Score, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return what a score of predictions loses without each class; positive where a class helps.

    Args:
        score: of predictions, float64 (n, classes), and labels.
        logits: of the full model on the target images, float32 (n, classes).
        labels: of the target images, int64 (n,).

    Returns:
        float64 (classes,).
    """
    whole = score(probabilities(logits), labels)
    classes = logits.shape[1]
    left = [score(probabilities(np.delete(logits, each, 1)), labels) for each in range(classes)]
    return whole - np.array(left)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (n, classes), float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def leep(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the LEEP of a model: the mean log-likelihood of its expected empirical predictor.

    Nguyen, Hassner, Seeger & Archambeau, ICML 2020 (arXiv 2002.12462).

    Args:
        predictions: over source classes, float64 (n, classes), rows with sum 1.
        labels: of the target, int64 (n,).
    """
    targets = one_hot(labels)
    joint = targets.T @ predictions / len(labels)  # P(y, z)
    marginal = joint.sum(axis=0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)
    likelihood = (targets @ conditional * predictions).sum(axis=1)
    return float(np.log(likelihood).mean())


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the H-score of features: tr(cov(f)⁻¹ cov(E[f | y])).

    Bao et al., ICIP 2019 (arXiv 2212.10082); the inverse is the pseudo-inverse. It is the number of
    target classes minus 1 wherever there are as many directions as images.

    Args:
        features: float64 (n, d).
        labels: int64 (n,).
    """
    centred = features - features.mean(axis=0)
    targets = one_hot(labels)
    means = targets @ (targets.T @ centred / targets.sum(axis=0)[:, None])
    inverse = np.linalg.pinv(centred.T @ centred, rcond=LEAST_VARIANCE, hermitian=True)
    return float(np.sum(inverse * (means.T @ means)))


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the LogME of features: the log evidence a label, at its maximum, mean over classes.

    You, Liu, Wang & Long, ICML 2021 (arXiv 2102.11005). Of a linear model of each class's
    indicator, with precision *α* of the weights and *β* of the noise; both by MacKay's
    fixed point. In the eigenvectors of *FᵀF*, so that a step costs as many operations as there are
    features.

    Args:
        features: *F*, float64 (n, d).
        labels: int64 (n,).
    """
    count, width = features.shape
    targets = one_hot(labels)
    squares, inside, outside = _spectrum(features, targets)
    alpha, beta = np.ones((2, targets.shape[1]))
    tiny = np.finfo(float).tiny
    for _ in range(MOST_STEPS):
        precision = alpha + beta * squares
        known = (beta * squares / precision).sum(axis=0)  # γ
        unknown = count - len(squares) + (alpha / precision).sum(axis=0)  # n − γ, more exactly
        weights = (squares * inside * (beta / precision) ** 2).sum(axis=0)  # |m|²
        residual = outside + (inside * (alpha / precision) ** 2).sum(axis=0)
        before = alpha / beta  # which decides the next step
        beta = unknown / np.maximum(residual, tiny)
        alpha = known / np.maximum(weights, tiny)
        alpha, beta = (
            np.minimum(alpha, beta * LARGEST_RATIO),
            np.minimum(beta, alpha * LARGEST_RATIO),
        )
        if np.allclose(alpha / beta, before, rtol=TOLERANCE, atol=0):
            break
    precision = alpha + beta * squares
    weights = (squares * inside * (beta / precision) ** 2).sum(axis=0)
    residual = outside + (inside * (alpha / precision) ** 2).sum(axis=0)
    log_determinant = np.log(precision).sum(axis=0) + (width - len(squares)) * np.log(alpha)
    evidence = count * np.log(beta / (2 * np.pi)) + width * np.log(alpha) - log_determinant
    evidence -= beta * residual + alpha * weights
    return float((evidence / 2 / count).mean())


def _spectrum(
    features: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the squared singular values of features (r, 1), and what they see of the targets.

    That is the squares of the targets' parts along each left singular vector (r, targets), and of
    what is left (targets,).
    """
    squares, vectors = np.linalg.eigh(features.T @ features)
    kept = squares > LEAST_VARIANCE * squares.max()
    squares, vectors = squares[kept], vectors[:, kept]
    along = vectors.T @ (features.T @ targets)
    inside = along**2 / squares[:, None]
    left = targets - features @ (vectors @ (along / squares[:, None]))
    return squares[:, None], inside, (left**2).sum(axis=0)


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Return a column for each class that has labels (n,): float64 (n, classes), 0 or 1."""
    return (labels[:, None] == np.unique(labels)).astype(np.float64)
