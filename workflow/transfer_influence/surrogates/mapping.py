"""Which source classes target images are mapped to: pruning for transfer (Zhang et al. 2023).

"Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning",
NeurIPS 2023, arXiv 2310.08782. A class that more target images are mapped to is kept
first; here counts are shares of the images.
"""

import numpy as np


def label_mapping(logits: np.ndarray) -> np.ndarray:
    """Return the share of target images that the full model takes for each source class.

    Their "label mapping" (LM). Of equal logits the first counts.

    Args:
        logits: of the full model on the target images, float32 (n, classes).

    Returns:
        float64 (classes,), with sum 1.
    """
    return np.bincount(logits.argmax(axis=1), minlength=logits.shape[1]) / len(logits)


def feature_mapping(means: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the share of target images whose nearest mean of a source class is each one's.

    Their "feature mapping" (FM), by Euclidean distance in the space of features. They have no
    labels and so map to the means of clusters of the source images; here the classes are the
    clusters. Of equal distances the first counts.

    Args:
        means: mean features of the source classes, float64 (classes, d).
        target: features of the target images, float32 (n, d).

    Returns:
        float64 (classes,), with sum 1.
    """
    # Less |x|², which is the same for all classes.
    distances = (means**2).sum(axis=1) - 2 * target.astype(np.float64) @ means.T
    return np.bincount(distances.argmin(axis=1), minlength=len(means)) / len(target)
