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


_STORED_MODE = "stored mode"  # where an image remembers it once it has been converted


class UnreadableError(UserError):
    """An image is missing, damaged or cut short."""


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

        Its mode before that is what `stored_mode` returns.

        Raises:
            UnreadableError: the image is missing, damaged or cut short.
            UserError: it has more than 8 bits a channel.
        """
        try:
            image = self.load(index)
            mode = stored_mode(image)
            if image.mode in _MODES:
                image = image.convert("RGB")
                image.info = {_STORED_MODE: mode}
                return image
        except UserError:
            raise
        except Exception as error:  # PIL's decoders raise all sorts
            raise UnreadableError(
                f"{self.name(index)}: not readable as an image ({error}); replace or remove it, or "
                "set `unreadable: skip` in the data set's file."
            ) from None
        raise UserError(
            f"{self.name(index)}: pixels of mode {image.mode!r} do not fit into 8 bits; convert "
            "the image to 8-bit RGB or greyscale (`unreadable: skip` leaves out damaged images "
            "only, and this one is whole)."
        )

    def take(self, indices: np.ndarray) -> "Images":
        """Return the images at `indices` (int64), in that order."""
        return Images(
            self.labels[indices],
            lambda index: self.load(int(indices[index])),
            lambda index: self.name(int(indices[index])),
        )

    def relabelled(self, labels: np.ndarray) -> "Images":
        """Return the same images with other labels, int64 (N,)."""
        return replace(self, labels=labels)

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


def stored_mode(image: Image.Image) -> str:
    """Return PIL's name of the mode an image had in its file, such as `CMYK`."""
    return str(image.info.get(_STORED_MODE, image.mode))


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    scale = size / min(image.size)
    width, height = (max(size, round(scale * side)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))
