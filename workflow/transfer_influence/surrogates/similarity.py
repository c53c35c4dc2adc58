"""How near the features of a source class are to those of target images."""

import numpy as np

NEIGHBOURS = 10  # source images that a target image votes for
CHUNK = 2**14  # source images at a time


def mean_features(features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean features of each class, float64 (classes, d).

    Args:
        features: float32 (n, d).
        labels: int64 (n,), with an image of each class at least.
        classes: how many.
    """
    of_classes = (features[labels == label] for label in range(classes))
    return np.array([images.mean(axis=0, dtype=np.float64) for images in of_classes])


def feature_similarity(means: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the mean cosine of target images with the mean features of each source class.

    Mean features as in the domain similarity of Cui et al. 2018 (arXiv 1806.06193), but compared by
    the cosine.

    Args:
        means: float64 (classes, d).
        target: features of the target images, float32 (n, d).

    Returns:
        float64 (classes,).
    """
    return unit_vectors(means) @ unit_vectors(target).mean(axis=0)


def nearest_neighbours(
    source: np.ndarray, labels: np.ndarray, classes: int, target: np.ndarray
) -> np.ndarray:
    """Return the share of each class among the nearest source images of the target images.

    Each target image has ten neighbours, the source images of the highest cosine; of equal ones
    the first. A class of a tenth of the images has a share of 0.1 by chance.

    Args:
        source: features of the source images, float32 (N, d).
        labels: of the source images, int64 (N,).
        classes: how many.
        target: features of the target images, float32 (n, d).

    Returns:
        float64 (classes,), with sum 1.
    """
    wanted = min(NEIGHBOURS, len(source))
    looking = unit_vectors(target)
    cosines: np.ndarray = np.empty((len(target), 0))
    found: np.ndarray = np.empty((len(target), 0), np.int64)
    for first in range(0, len(source), CHUNK):
        part = source[first : first + CHUNK]
        places = np.broadcast_to(np.arange(first, first + len(part)), (len(target), len(part)))
        cosines = np.hstack([cosines, looking @ unit_vectors(part).T])
        found = np.hstack([found, places])
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :wanted]
        cosines, found = (np.take_along_axis(each, best, axis=1) for each in (cosines, found))
    return np.bincount(labels[found].ravel(), minlength=classes) / found.size


def unit_vectors(rows: np.ndarray) -> np.ndarray:
    """Return rows (n, d) as float64, each of length 1; rows of zeros stay."""
    rows = rows.astype(np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length != 0)
