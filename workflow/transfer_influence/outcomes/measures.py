"""What is measured on the test images of a target: means, and the area under the ROC curve."""

import numpy as np


def class_means(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean of `values` within each class, float64 (classes,); NaN for no examples."""
    counts = np.bincount(labels, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(labels, weights=values, minlength=classes) / counts


def accuracies(
    is_correct: np.ndarray, labels: np.ndarray, classes: int, per_class: bool
) -> tuple[float, np.ndarray]:
    """Return the accuracy of a model, and that of each class.

    Args:
        is_correct: bool (n,).
        labels: int64 (n,).
        classes: how many there are.
        per_class: whether the accuracy is the mean over classes with examples.

    Returns:
        The accuracy, and float64 (classes,), NaN for a class without examples.
    """
    of_classes = class_means(is_correct, labels, classes)
    return float(np.nanmean(of_classes) if per_class else is_correct.mean()), of_classes


def area_under_roc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the probability that a positive example scores above a negative one.

    Computed from the number of negatives below each score, ties counting one half (Mann & Whitney
    1947); NaN if a class is empty.
    """
    negatives = np.sort(scores[~positive])
    if len(negatives) in (0, len(scores)):
        return float("nan")
    below = np.searchsorted(negatives, scores[positive], side="left")
    not_above = np.searchsorted(negatives, scores[positive], side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))


def area_of_margins(margins: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under the ROC curve of class 1 of two classes, from margins of logits.

    A margin is the logit of class 1 minus that of class 0, or the other way round where the label
    is 0. It ranks as the probability of class 1 does, but never saturates.
    """
    positive = labels == 1
    return area_under_roc(np.where(positive, margins, -margins), positive)
