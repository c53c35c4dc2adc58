"""Open a data set: find its images, check them, split them; nothing is decoded yet.

A new kind is one small class of settings in `config/dataset.py` and one small class in `kinds/`
with a method `parts`, entered into `KINDS`. Relative paths in settings start at the working folder.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_influence.config.dataset import (
    ArraysDataset,
    Dataset,
    DatasetSettings,
    FolderDataset,
    TableDataset,
    TorchvisionDataset,
    UnionDataset,
    find_dataset,
)
from transfer_influence.datasets.images import Images, side_by_side
from transfer_influence.datasets.kinds.arrays import Arrays
from transfer_influence.datasets.kinds.folder import Folder
from transfer_influence.datasets.kinds.parts import Kind
from transfer_influence.datasets.kinds.table import Table
from transfer_influence.datasets.kinds.torchvision_class import TorchvisionClass
from transfer_influence.datasets.splits import split_images
from transfer_influence.errors import UserError

KINDS: dict[type[DatasetSettings], Kind] = {
    FolderDataset: Folder(),
    TorchvisionDataset: TorchvisionClass(),
    ArraysDataset: Arrays(),
    TableDataset: Table(),
}


@dataclass(frozen=True)
class RawDataset:
    """A data set as its source gives it, split and ready to be written.

    Attributes:
        name: its name in `config/datasets/`.
        classes: class names in the order of the labels.
        train: training images.
        test: test images.
        settings: what its file says, on how to check, normalise and write the images.
        licence: licence of the images.
        citation: whom to cite for them.
    """

    name: str
    classes: list[str]
    train: Images
    test: Images
    settings: DatasetSettings
    licence: str
    citation: str


def open_dataset(name: str, folders: list[Path]) -> RawDataset:
    """Open the data set that `{name}.yaml`, in the first of `folders` that has it, describes.

    No image is decoded yet.

    Raises:
        UserError: the settings are wrong or do not fit the images.
    """
    return _open(name, folders, ())


def _open(name: str, folders: list[Path], inside: tuple[str, ...]) -> RawDataset:
    settings, path = find_dataset(name, folders)
    origin = str(path)
    if isinstance(settings, UnionDataset):
        return _open_union(name, settings, origin, folders, inside)
    found = KINDS[type(settings)].parts(settings, origin)
    kept = _kept_classes(found.classes, settings.leave_out, origin)
    classes = _class_names([found.classes[label] for label in kept], settings, origin)
    train = _of_classes(found.train, kept, len(found.classes), classes, origin)
    test = found.test
    if test is not None:
        test = _of_classes(test, kept, len(found.classes), classes, f"{origin}: test part")
    train, test = split_images(train, test, settings.split, classes, origin)
    return _finished(name, settings, classes, train, test, settings.licence, settings.citation)


def _open_union(
    name: str, settings: UnionDataset, origin: str, folders: list[Path], inside: tuple[str, ...]
) -> RawDataset:
    inside = (*inside, name)
    for part in settings.parts:
        if part in inside:
            raise UserError(
                f"{origin}: parts: the union {part!r} would contain itself; remove it from `parts`."
            )
    parts = [_open(part, folders, inside) for part in settings.parts]
    classes = _class_names([own for part in parts for own in part.classes], settings, origin)
    first_labels = [0, *np.cumsum([len(part.classes) for part in parts])[:-1].tolist()]
    return _finished(
        name,
        settings,
        classes,
        side_by_side([part.train for part in parts], first_labels),
        side_by_side([part.test for part in parts], first_labels),
        _stated(settings, "licence", [part.licence for part in parts]),
        _stated(settings, "citation", [part.citation for part in parts]),
    )


def _stated(settings: UnionDataset, key: str, of_parts: list[str]) -> str:
    """Return what the union says itself, else what its parts say."""
    if key in settings.model_fields_set:
        return str(getattr(settings, key))
    return "; ".join(dict.fromkeys(of_parts))


def _finished(
    name: str,
    settings: Dataset,
    classes: list[str],
    train: Images,
    test: Images,
    licence: str,
    citation: str,
) -> RawDataset:
    if settings.image_size is not None:
        train, test = train.resized(settings.image_size), test.resized(settings.image_size)
    return RawDataset(name, classes, train, test, settings, licence, citation)


def _class_names(found: list[str], settings: DatasetSettings, origin: str) -> list[str]:
    names = settings.classes or found
    if len(names) != len(found):
        raise UserError(
            f"{origin}: classes: {len(names)} names for {len(found)} classes; list one name "
            "a class."
        )
    if len(names) < 2:
        raise UserError(
            f"{origin}: {len(names)} class(es) found ({', '.join(names) or 'none'}); two are "
            "needed, check that the data has one folder or label a class."
        )
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"{origin}: two classes are called {twice[0]!r}; rename with `classes:`.")
    return names


def _kept_classes(found: list[str], left_out: list[str], origin: str) -> list[int]:
    """Return the labels of the classes that are not left out."""
    unknown = [name for name in left_out if name not in found]
    if unknown:
        near = difflib.get_close_matches(unknown[0], found, n=1)
        raise UserError(
            f"{origin}: leave_out: the data has no class {unknown[0]!r}"
            f"{f' (did you mean {near[0]!r}?)' if near else ''}; correct or remove the name."
        )
    return [label for label, name in enumerate(found) if name not in left_out]


def _of_classes(
    images: Images, kept: list[int], found: int, classes: list[str], origin: str
) -> Images:
    """Check the labels and return the images of the kept classes, labelled from 0 on.

    Args:
        images: labelled with 0 to `found` - 1.
        kept: labels to keep.
        found: number of classes before any is left out.
        classes: names of the kept classes.
        origin: for error messages.
    """
    if len(images) == 0:
        raise UserError(f"{origin}: a part of the data set holds no images; check where it points.")
    outside = (images.labels < 0) | (images.labels >= found)
    if outside.any():
        index = int(outside.argmax())
        raise UserError(
            f"{origin}: {images.name(index)} has label {images.labels[index]}, which is not one of "
            f"0 to {found - 1}; correct the labels or list all names in `classes`."
        )
    if len(kept) < found:
        renumbered = np.full(found, -1)
        renumbered[kept] = np.arange(len(kept))
        images = images.relabelled(renumbered[images.labels])
        images = images.take(np.flatnonzero(images.labels >= 0))
    check_no_class_is_empty(images.labels, classes, origin)
    return images


def check_no_class_is_empty(labels: np.ndarray, classes: list[str], origin: str) -> None:
    """Check that each class has an image.

    Raises:
        UserError: one has none.
    """
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        name = classes[empty[0]]
        raise UserError(f"{origin}: class {name!r} has no images; add some or remove the class.")
