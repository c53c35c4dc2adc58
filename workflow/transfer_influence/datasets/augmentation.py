"""What happens to each image of an epoch, decided by a hash of (key, example, draw).

No random state is carried along, so batch size, order, number of workers and loader change
nothing: the same key and example always give the same view.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from transfer_influence.config.recipe import Recipe

SCALE = (0.08, 1.0)  # share of the area
RATIO = (3 / 4, 4 / 3)  # width : height
TRIES = 10

# Draw numbers. Random boxes use 4 × try + 0 to 3.
_FLIP, _SHIFT_DOWN, _SHIFT_RIGHT = 1000, 1001, 1002


def uniform(key: int, examples: np.ndarray, draw: int) -> np.ndarray:
    """Return random numbers that depend on nothing but their arguments.

    Args:
        key: which epoch of which model, 0 to 2**64 - 1.
        examples: int64 (n,), indices of images.
        draw: number of the draw, so that one example can have several.

    Returns:
        float64 (n,) in [0, 1).
    """
    words = _mixed(np.array([key], np.uint64))
    words = _mixed(words ^ examples.astype(np.uint64))
    words = _mixed(words ^ np.uint64(draw))
    return (words >> np.uint64(11)) * 2.0**-53


def _mixed(words: np.ndarray) -> np.ndarray:
    """Scramble 64-bit words: the step of the generator SplitMix64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


@dataclass(frozen=True)
class Views:
    """What to show of each of n images: first the box is cut out and resized, then it is moved.

    Attributes:
        boxes: int64 (n, 4), top, left, height, width in pixels of the stored image.
        shifts: int64 (n, 2), pixels by which to move down and right, filling with black.
        flips: bool (n,), whether to mirror left to right, after the shift.
    """

    boxes: np.ndarray
    shifts: np.ndarray
    flips: np.ndarray


def views(examples: np.ndarray, sizes: np.ndarray, recipe: Recipe, key: int | None) -> Views:
    """Decide what one epoch shows of each image.

    Args:
        examples: int64 (n,), indices of images.
        sizes: int64 (n, 2), their heights and widths in pixels.
        recipe: which augmentation, and how much of an image the centre crop keeps.
        key: augmentation key of the epoch; None for the test view, without augmentation.
    """
    augmentation = recipe.augmentation
    shifts = np.zeros((len(examples), 2), np.int64)
    if key is None:
        return Views(centre_boxes(sizes, recipe.test_crop), shifts, flips(examples, recipe, key))
    if augmentation.crop == "random_resized":
        boxes = random_boxes(key, examples, sizes)
    else:
        boxes = centre_boxes(sizes, recipe.test_crop)
    if augmentation.crop == "padded":
        choices = 2 * augmentation.padding + 1
        for axis, draw in enumerate((_SHIFT_DOWN, _SHIFT_RIGHT)):
            drawn = np.floor(uniform(key, examples, draw) * choices).astype(np.int64)
            shifts[:, axis] = drawn - augmentation.padding
    return Views(boxes, shifts, flips(examples, recipe, key))


def flips(examples: np.ndarray, recipe: Recipe, key: int | None) -> np.ndarray:
    """Decide which images one epoch mirrors, bool (n,); see `views`."""
    if key is None or not recipe.augmentation.flip:
        return np.zeros(len(examples), bool)
    return uniform(key, examples, _FLIP) < 0.5


def centre_boxes(sizes: np.ndarray, share: float) -> np.ndarray:
    """Return the central squares that keep `share` of the shorter sides, int64 (n, 4)."""
    # Rounded down as FFCV does, but not from 28.999999999999996, which 0.29 × 100 is.
    sides = np.maximum(1, np.floor(np.round(share * sizes.min(axis=1), 9)).astype(np.int64))
    squares = np.stack([sides, sides], axis=1)
    return np.concatenate([(sizes - squares) // 2, squares], axis=1)


def random_boxes(key: int, examples: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return random boxes as torchvision's RandomResizedCrop draws them, int64 (n, 4).

    Area and aspect ratio are drawn until the box fits, at most ten times; failing that, the
    central box with the nearest allowed ratio.
    """
    boxes = _fallback_boxes(sizes)
    left = np.arange(len(examples))  # positions still without a box
    for attempt in range(TRIES):
        area, ratio, down, right = (
            uniform(key, examples[left], 4 * attempt + draw) for draw in range(4)
        )
        areas = sizes[left].prod(axis=1) * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
        ratios = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio  # uniform in its logarithm
        drawn = np.stack([np.sqrt(areas / ratios), np.sqrt(areas * ratios)], axis=1)
        drawn = np.rint(drawn).astype(np.int64)
        fits = ((drawn > 0) & (drawn <= sizes[left])).all(axis=1)
        room = sizes[left] - drawn + 1
        corners = np.floor(np.stack([down, right], axis=1) * room).astype(np.int64)
        boxes[left[fits]] = np.concatenate([corners, drawn], axis=1)[fits]
        left = left[~fits]
    return boxes


def _fallback_boxes(sizes: np.ndarray) -> np.ndarray:
    heights, widths = sizes.T
    fitted = np.stack(
        [
            np.minimum(heights, np.rint(widths / RATIO[0]).astype(np.int64)),
            np.minimum(widths, np.rint(heights * RATIO[1]).astype(np.int64)),
        ],
        axis=1,
    )
    return np.concatenate([(sizes - fitted) // 2, fitted], axis=1)


def shift_and_flip(
    images: torch.Tensor, shifts: torch.Tensor, flips: torch.Tensor, padding: int
) -> torch.Tensor:
    """Move and mirror a batch without a loop over its images.

    Args:
        images: uint8 (B, R, R, 3), contiguous.
        shifts: int64 (B, 2) on the same device, pixels down and right, up to `padding`.
        flips: bool (B,) on the same device.
        padding: the largest shift in pixels.

    Returns:
        uint8 (B, R, R, 3).
    """
    resolution = images.shape[1]
    stride = resolution + 2 * padding
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    places = torch.arange(resolution, device=images.device)
    columns = torch.where(flips[:, None], resolution - 1 - places, places)
    columns = columns + padding - shifts[:, 1:]
    rows = places + padding - shifts[:, :1]
    first = torch.arange(len(images), device=images.device) * stride**2
    # Whole pixels by their place in the batch: three times faster than three-fold indexing.
    wanted = first[:, None, None] + rows[:, :, None] * stride + columns[:, None, :]
    return padded.view(-1, 3).index_select(0, wanted.view(-1)).view_as(images)


def upsampled(images: torch.Tensor, side: int) -> torch.Tensor:
    """Enlarge images by repeating pixels, as `torch.nn.Upsample` does.

    Args:
        images: uint8 (B, R, R, 3).
        side: of the result in pixels.

    Returns:
        uint8 (B, side, side, 3), contiguous.
    """
    given = images.shape[1]
    places = torch.arange(side, device=images.device) * given // side
    return images.index_select(1, places).index_select(2, places)


def resized_boxes(images: torch.Tensor, boxes: torch.Tensor, resolution: int) -> torch.Tensor:
    """Cut a box out of each image and resize it, all in two batched matrix products.

    Bilinear with antialiasing, as `functional.interpolate(antialias=True)` does for one image.

    Args:
        images: uint8 (B, H, W, 3).
        boxes: int64 (B, 4) on the same device, top, left, height, width in pixels.
        resolution: side of the result in pixels.

    Returns:
        uint8 (B, R, R, 3), contiguous.
    """
    top, left, height, width = boxes.T
    rows = _resize_weights(top, height, images.shape[1], resolution)
    columns = _resize_weights(left, width, images.shape[2], resolution)
    resized = torch.einsum("byh,bhwc->bywc", rows, images.float())
    resized = torch.einsum("bxw,bywc->byxc", columns, resized)
    return resized.round().clamp(0, 255).to(torch.uint8).contiguous()


def _resize_weights(
    starts: torch.Tensor, lengths: torch.Tensor, stored: int, resolution: int
) -> torch.Tensor:
    """Return what each stored pixel gives to each resized one, float32 (B, R, stored)."""
    starts, lengths = starts[:, None, None].float(), lengths[:, None, None].float()
    scale = lengths / resolution
    wanted = torch.arange(resolution, device=starts.device)[None, :, None] + 0.5
    given = torch.arange(stored, device=starts.device)[None, None, :] + 0.5
    distance = (given - starts - wanted * scale).abs() / scale.clamp(min=1)
    inside = (given > starts) & (given < starts + lengths)
    weights = (1 - distance).clamp(min=0) * inside
    return weights / weights.sum(dim=2, keepdim=True)
