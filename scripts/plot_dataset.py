#!/usr/bin/env python
"""Draw some training images of each class of a converted data set."""

import argparse
from pathlib import Path

import numpy as np
import torch

from transfer_influence.datasets.augmentation import centre_boxes
from transfer_influence.datasets.beton import BetonStream, uncompiled
from transfer_influence.datasets.sidecar import read_labels, read_sidecar
from transfer_influence.figures.images import contact_sheet, example_indices
from transfer_influence.figures.style import save
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin

LARGEST_SIDE = 96  # pixels; more cannot be seen at the size of the figure


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_dataset"):
        origin = Origin.of({}, {"sidecar": arguments.data / "dataset.json"}, arguments.code)
        sidecar = read_sidecar(arguments.data / "dataset.json")
        labels = read_labels(arguments.data / "train.labels.npy")
        examples = example_indices(labels)
        side = min(LARGEST_SIDE, *sidecar.largest_size)
        images = centre_squares(arguments.data / "train.beton", examples, side)
        title = f"Training images of {sidecar.name}"
        figure = contact_sheet(images, labels[examples], sidecar.classes, title)
        save(figure, arguments.svg, arguments.png, origin.provenance())


def centre_squares(beton: Path, examples: np.ndarray, side: int) -> np.ndarray:
    """Return the central squares of a few images, uint8 (n, side, side, 3), and decode no other."""
    with uncompiled():
        stream = BetonStream(beton, torch.device("cpu"), workers=1)
        boxes = centre_boxes(stream.sizes[examples], share=1.0)
        (images,) = stream.epoch(examples, boxes, batch_size=len(examples), resolution=side)
    return images.numpy()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of a converted data set")
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
