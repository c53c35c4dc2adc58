"""What a kind of data set finds."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from transfer_influence.datasets.images import Images


@dataclass(frozen=True)
class Parts:
    """Class names, and one part or the official two."""

    classes: list[str]
    train: Images
    test: Images | None = None


class Kind(Protocol):
    """How one kind of data set finds its images."""

    def parts(self, settings: Any, origin: str) -> Parts:
        """Find classes and images; `origin` is the settings file, for error messages."""


def counted(images: list[Images]) -> list[str]:
    """Name the classes by their labels, where the data has no names."""
    labels = np.concatenate([part.labels for part in images])
    # More classes than images means gaps in the labels, which are refused when they are checked.
    return [str(label) for label in range(min(int(labels.max(initial=-1)) + 1, len(labels)))]
