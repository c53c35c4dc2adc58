"""The small files beside a converted data set: what jobs would else scan all images to learn."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from transfer_influence.config.storage import Storage
from transfer_influence.config.study import Unit
from transfer_influence.errors import UserError

FORMAT = 2
NAMED = 100

Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
HeightWidth = Annotated[list[int], Field(min_length=2, max_length=2)]


class Finding(BaseModel):
    """Images that a check found.

    Attributes:
        count: how many there are.
        names: the first ones, at most 100.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = 0
    names: list[str] = []

    @classmethod
    def of(cls, names: list[str]) -> "Finding":
        """Return the finding of all these."""
        return cls(count=len(names), names=names[:NAMED])


class Sidecar(BaseModel):
    """What `dataset.json` holds.

    Attributes:
        format: version of this file; changes when its meaning does.
        ffcv: version of FFCV that wrote the images.
        name: name of the data set in `config/datasets/`.
        classes: class names in the order of the labels.
        train_count: number of training images.
        test_count: number of test images.
        train_class_counts: the same, class by class.
        test_class_counts: the same, class by class.
        mean: red, green and blue to normalise with, black 0 and white 1: what the data set's file
            says, else that of all training pixels.
        std: standard deviation of the same; 1 for a channel that never changes.
        modes: how many images of both splits had each mode in their file, by PIL's name; all have
            become RGB. Classes of torchvision that hand out RGB themselves, and list no paths,
            hide the mode.
        unreadable: images of both splits left out as they are missing, damaged or cut short.
        overlap: training images whose pixels are those of a test image, as `train = test`.
        overlap_dropped: whether these were left out of the training images.
        image_size: height and width in pixels if all images of both splits share them.
        largest_size: largest height and largest width.
        digest: SHA-256 in hex over the digests of the training and the test split, each over
            height, width and label (little-endian int64) and RGB pixels of every image, in order,
            and over `storage` and, if the data set's file gives it, the normalisation. With JPEG
            storage, the pixels before compression.
        storage: how the images were written.
        licence: licence of the images.
        citation: whom to cite for them.
        provenance: what made all files of the folder, see `transfer_influence.provenance`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    ffcv: str
    name: str
    classes: list[str]
    train_count: int
    test_count: int
    train_class_counts: list[int]
    test_class_counts: list[int]
    mean: Channels
    std: Channels
    modes: dict[str, int] = {}
    unreadable: Finding = Finding()
    overlap: Finding = Finding()
    overlap_dropped: bool = False
    image_size: HeightWidth | None
    largest_size: HeightWidth
    digest: str
    storage: Storage
    licence: str
    citation: str
    provenance: dict[str, Any] = {}

    def units(self, unit: Unit) -> int:
        """Return how many units there are to judge: classes, or training examples."""
        return self.train_count if unit == "example" else len(self.classes)


def unit_names(folder: Path, unit: Unit) -> list[str]:
    """Return the names of all units of a converted data set, in order.

    A class has the name of the data set's file, an example that of its image.

    Raises:
        UserError: see `read_sidecar`; or the table of the images is missing or damaged.
    """
    if unit == "class":
        return read_sidecar(folder / "dataset.json").classes
    path = folder / "train.examples.parquet"
    try:
        return pq.read_table(path, columns=["name"])["name"].to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable ({reason}); convert the data set again.") from None


def read_sidecar(path: Path) -> Sidecar:
    """Read a `dataset.json`.

    Raises:
        UserError: it is missing, unreadable, or of another version.
    """
    try:
        sidecar = Sidecar.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; convert the data set first.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(
            f"{path}: {key}: {first['msg'].lower()}; delete the file and convert the data set "
            "again."
        ) from None
    if sidecar.format != FORMAT:
        raise UserError(
            f"{path}: format {sidecar.format} where this version reads {FORMAT}; convert the data "
            "set again."
        )
    return sidecar


def read_labels(path: Path) -> np.ndarray:
    """Read the labels of a split, int64 (N,).

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({error}); convert the data set again.") from None
