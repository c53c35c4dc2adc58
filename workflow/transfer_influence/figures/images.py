"""What is in a data set."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from transfer_influence.figures.style import WIDTH, set_title, short, styled

MOST_CLASSES, EXAMPLES = 20, 8


def example_indices(labels: np.ndarray) -> np.ndarray:
    """Choose the images of a contact sheet: the first 8 of each class, of at most 20 classes.

    Of more classes, 20 are chosen evenly spaced.
    """
    classes = np.unique(labels)
    chosen = classes[np.linspace(0, len(classes) - 1, min(len(classes), MOST_CLASSES)).astype(int)]
    return np.concatenate([np.flatnonzero(labels == label)[:EXAMPLES] for label in chosen])


@styled
def contact_sheet(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str
) -> Figure:
    """Draw images in rows, one row a class, in two blocks where there are more than 5 classes.

    Args:
        images: uint8 (n, side, side, 3).
        labels: class of each image (n,).
        classes: names of all classes, also of those without images here.
        title: of the figure; where classes are left out, their number is added.
    """
    shown = np.unique(labels)
    columns = np.bincount(labels).max()
    strips = [_strip(images[labels == label], columns) for label in shown]
    names = [short(classes[label], 22) for label in shown]
    blocks = 1 if len(shown) <= 5 else 2
    lines = -(-len(shown) // blocks)
    pitch = len(strips[0])
    beside = 0.2 + 0.065 * max(map(len, names))  # inches for the names
    side = min(0.6, (WIDTH / blocks - beside) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + lines * side))
    for block, axes in enumerate(figure.subplots(1, blocks, squeeze=False).flat):
        rows = slice(block * lines, (block + 1) * lines)
        axes.imshow(np.vstack(strips[rows]))
        # Every block is as high as the first, so that all images have one size.
        axes.set_ylim(lines * pitch - 0.5, -0.5)
        axes.set_anchor("NW")
        axes.set_yticks((np.arange(len(names[rows])) + 0.47) * pitch, names[rows])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    left_out = f" ({len(shown)} of {len(classes)} classes)" if len(shown) < len(classes) else ""
    set_title(figure, title + left_out)
    return figure


def _strip(images: np.ndarray, columns: int) -> np.ndarray:
    """Put images side by side, with room for `columns` of them."""
    side = images.shape[1]
    pitch = side + max(1, side // 14)
    cells = np.full((columns, pitch, pitch, 3), 255, np.uint8)
    cells[: len(images), :side, :side] = images
    return np.hstack(list(cells))
