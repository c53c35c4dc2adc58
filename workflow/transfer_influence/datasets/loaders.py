"""Batches of uint8 images for training and evaluation, from memory or from FFCV's pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from transfer_influence.config.recipe import Recipe
from transfer_influence.datasets.augmentation import (
    Views,
    resized_boxes,
    shift_and_flip,
    upsampled,
    views,
)
from transfer_influence.datasets.beton import BetonStream, decode_all
from transfer_influence.datasets.sidecar import read_labels, read_sidecar
from transfer_influence.errors import UserError

# `loader: auto` keeps a split in memory while its decoded pixels take less than this many bytes.
RESIDENT_BYTES = 2 * 2**30

Split = Literal["train", "test"]
Batch = tuple[torch.Tensor, torch.Tensor]


class Loader(Protocol):
    """Batches of the images of one split.

    Attributes:
        labels: int64 (N,), the label of every image of the split.
    """

    labels: np.ndarray

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """Yield the images of `examples`, in that order; the last batch may be smaller.

        Batches do not depend on batch size, order or number of workers, and are yours to keep.
        Use up or drop one iterator before asking for the next.

        Args:
            examples: int64 (n,), indices into the split; may be empty or name an image twice.
            batch_size: images a batch.
            key: augmentation key of this epoch; None for the test view, with nothing random.
            resolution: side R of the images in pixels; may be another one in each epoch.

        Yields:
            Images, uint8 (B, 3, R, R) in channels-last memory, and labels, int64 (B,), both on
            the device. Where the recipe enlarges images, its `upsample_to` takes the place of R.
        """


def open_loader(
    folder: Path, split: Split, recipe: Recipe, device: torch.device, workers: int
) -> Loader:
    """Open one split of a converted data set.

    Args:
        folder: holds `{train,test}.beton`, `{train,test}.labels.npy` and `dataset.json`.
        split: which split.
        recipe: crops, augmentation, and which loader.
        device: where the batches go.
        workers: CPU threads for decoding; never more than this process may use.

    Raises:
        UserError: a file is missing or damaged, or `loader: resident` meets images of
            different sizes.
    """
    sidecar = read_sidecar(folder / "dataset.json")
    beton = folder / f"{split}.beton"
    labels = read_labels(folder / f"{split}.labels.npy")
    if recipe.loader == "resident" and sidecar.image_size is None:
        raise UserError(
            f"{folder}: `loader: resident` needs images of one size, and these reach "
            f"{' × '.join(map(str, sidecar.largest_size))} pixels; set `loader: stream`, or "
            "`image_size` in the data set's file."
        )
    resident = recipe.loader == "resident"
    if recipe.loader == "auto" and sidecar.image_size is not None:
        height, width = sidecar.image_size
        resident = len(labels) * height * width * 3 < RESIDENT_BYTES
    if resident:
        return ResidentLoader(beton, labels, recipe, device, workers)
    return StreamLoader(beton, labels, recipe, device, workers)


class ResidentLoader:
    """All images decoded once into one tensor on the device, and augmented there."""

    def __init__(
        self, beton: Path, labels: np.ndarray, recipe: Recipe, device: torch.device, workers: int
    ) -> None:
        self.labels = labels
        self._recipe = recipe
        self._device = device
        self._images = torch.from_numpy(decode_all(beton, workers)).to(device)
        self._labels = torch.from_numpy(labels).to(device)

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """See `Loader`."""
        size = np.array(self._images.shape[1:3])
        epoch = views(examples, np.tile(size, (len(examples), 1)), self._recipe, key)
        finished = _Finish(epoch, self._recipe, self._device)
        order = torch.from_numpy(examples).to(self._device)
        boxes = torch.from_numpy(epoch.boxes).to(self._device)
        window = _common_window(epoch.boxes, resolution)
        for start in range(0, len(examples), batch_size):
            batch = slice(start, start + batch_size)
            if window is not None:
                images = self._images[:, *window][order[batch]]
            else:
                images = resized_boxes(self._images[order[batch]], boxes[batch], resolution)
            yield finished(images, batch), self._labels[order[batch]]


def _common_window(boxes: np.ndarray, resolution: int) -> tuple[slice, slice] | None:
    """Return the rows and columns to keep if they are the same for all and need no resizing."""
    if len(boxes) == 0 or (boxes != boxes[0]).any() or (boxes[0, 2:] != resolution).any():
        return None
    top, left = boxes[0, :2].tolist()
    return slice(top, top + resolution), slice(left, left + resolution)


class StreamLoader:
    """FFCV reads, crops and resizes batch by batch; the rest is done on the device."""

    def __init__(
        self, beton: Path, labels: np.ndarray, recipe: Recipe, device: torch.device, workers: int
    ) -> None:
        self.labels = labels
        self._recipe = recipe
        self._device = device
        self._stream = BetonStream(beton, device, workers)
        self._labels = torch.from_numpy(labels).to(device)

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """See `Loader`."""
        epoch = views(examples, self._stream.sizes[examples], self._recipe, key)
        finished = _Finish(epoch, self._recipe, self._device)
        order = torch.from_numpy(examples).to(self._device)
        start = 0
        for images in self._stream.epoch(examples, epoch.boxes, batch_size, resolution):
            batch = slice(start, start + len(images))
            yield finished(images, batch), self._labels[order[batch]]
            start += len(images)


class _Finish:
    """The last step of both loaders: shift, flip, enlarge, and channels in front."""

    def __init__(self, epoch: Views, recipe: Recipe, device: torch.device) -> None:
        self._still = not (epoch.shifts.any() or epoch.flips.any())
        self._shifts = torch.from_numpy(epoch.shifts).to(device)
        self._flips = torch.from_numpy(epoch.flips).to(device)
        self._padding = int(np.abs(epoch.shifts).max(initial=0))
        self._side = recipe.upsample_to

    def __call__(self, images: torch.Tensor, batch: slice) -> torch.Tensor:
        if not self._still:
            images = shift_and_flip(images, self._shifts[batch], self._flips[batch], self._padding)
        if self._side is not None:
            images = upsampled(images, self._side)
        return images.permute(0, 3, 1, 2)  # a view: NHWC memory is channels-last
