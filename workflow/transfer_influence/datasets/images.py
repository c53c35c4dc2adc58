"""A list of labelled images that are read only when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from transfer_influence.errors import UserError

# Modes that PIL turns into 8-bit RGB without losing anything that can be seen. The 16- and 32-bit
# modes are left out: PIL would clip them to white.
_MODES = {
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "HSV",
    "LAB",
}


@dataclass(frozen=True)
class Images:
    """Images with labels, decoded one at a time.

    Attributes:
        labels: int64 (N,), the class of each image.
        load: reads image `i` as a PIL image of any mode.
        name: what to call image `i` in an error message, such as its path.
    """

    labels: np.ndarray
    load: Callable[[int], Image.Image]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return image `index` in mode RGB, fully decoded.

        Raises:
            UserError: the image cannot be read, or has more than 8 bits a channel.
        """
        try:
            image = self.load(index)
            if image.mode in _MODES:
                return image.convert("RGB")
        except UserError:
            raise
        except Exception as error:  # PIL's decoders raise all sorts
            raise UserError(
                f"{self.name(index)}: not readable as an image ({error}); replace or remove it."
            ) from None
        raise UserError(
            f"{self.name(index)}: pixels of mode {image.mode!r} do not fit into 8 bits; convert "
            "the image to 8-bit RGB or greyscale."
        )

    def take(self, indices: np.ndarray) -> "Images":
        """Return the images at `indices` (int64), in that order."""
        return Images(
            self.labels[indices],
            lambda index: self.load(int(indices[index])),
            lambda index: self.name(int(indices[index])),
        )

    def resized(self, size: int) -> "Images":
        """Return RGB images of `size` × `size` pixels: shorter side resized, centre cropped."""
        return replace(self, load=lambda index: _centre_square(self.image(index), size))


def side_by_side(parts: Sequence[Images], first_labels: Sequence[int]) -> Images:
    """Return the images of all parts, the labels of each part raised by its first label."""
    starts = np.cumsum([0, *(len(part) for part in parts)])

    def at(index: int) -> tuple[Images, int]:
        part = int(np.searchsorted(starts, index, side="right")) - 1
        return parts[part], int(index - starts[part])

    def load(index: int) -> Image.Image:
        part, inside = at(index)
        return part.image(inside)

    def name(index: int) -> str:
        part, inside = at(index)
        return part.name(inside)

    labels = [part.labels + first for part, first in zip(parts, first_labels, strict=True)]
    return Images(np.concatenate(labels), load, name)


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(scale * side)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
