"""Images that are held out, class by class."""

import math

import numpy as np


def hold_out(
    labels: np.ndarray, fraction: float, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a share of each class's images to hold out, at least one and never all.

    A class with a single image is not held out.

    Args:
        labels: of all images, int64 (n,).
        fraction: share to hold out; half an image rounds up.
        random: draws.

    Returns:
        Indices, int64, of the images that are left and of those held out; sorted.
    """
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(share_of(len(members), fraction), len(members) - 1)
        held_out[random.permutation(members)[:count]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def share_of(count: int, share: float) -> int:
    """Return a share of `count` images in whole images, half an image up, and at least one."""
    # Rounded first, as 0.29 × 50 is 14.499999999999998.
    return max(1, math.floor(round(share * count, 9) + 0.5))
