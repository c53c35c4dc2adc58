"""What gradients say: which source images move the model as the target would have it.

TRAK: Park, Georgiev, Ilyas, Leclerc & Mądry, ICML 2023 (arXiv 2303.14186). A model is
linearised in its parameters, their gradients are projected to a few dimensions at random, and the
influence of training images is that of a logistic regression there.
"""

import numpy as np

LEAST_EIGENVALUE = 1e-10  # of the largest; below, rounding


def trak(gradients: np.ndarray, labels: np.ndarray, classes: int, target: np.ndarray) -> np.ndarray:
    """Return the scores of one model, summed over the images of a class, mean over target images.

    A source image has the score *φ(t)ᵀ (ΦᵀΦ)⁻¹ φ(z)*. Theirs has the factor 1 − p(z)
    as well, by which training moves when one image goes. It is left out: a class goes as a whole,
    and of images that the model has learned well the factor leaves nothing, so that the few images
    of other classes that it gets wrong would decide (docs/surrogates.md).

    Args:
        gradients: *Φ*, projected, of the source images, float32 (N, k).
        labels: of the source images, int64 (N,).
        classes: how many.
        target: *φ*, projected gradients of the target images, float32 (n, k).

    Returns:
        float64 (classes,).
    """
    features = gradients.astype(np.float64)
    kernel = features.T @ features
    inverse = np.linalg.pinv(kernel, rcond=LEAST_EIGENVALUE, hermitian=True)
    scores = features @ (inverse @ target.mean(axis=0, dtype=np.float64))
    return np.bincount(labels, weights=scores, minlength=classes)
