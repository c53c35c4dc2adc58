"""Classes of torchvision."""

import fcntl
import gzip
import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfer_influence.config.dataset import TorchvisionDataset
from transfer_influence.datasets.images import Images, side_by_side
from transfer_influence.datasets.kinds.parts import Parts, counted
from transfer_influence.errors import UserError
from transfer_influence.files import atomic

# Where the classes keep what they know of their images: none has a method to ask for it.
_LABELS = ("targets", "labels", "_labels", "y")
_PATHS = ("_image_files", "_images")
_SAMPLES = ("samples", "_samples")  # both, in pairs

# Folders below `root` that a class asks for without a word on what is missing.
_EXPECTED = {"Caltech101": "caltech101/101_ObjectCategories/BACKGROUND_Google"}


class TorchvisionClass:
    """A class of `torchvision.datasets`, its official parts told apart by `train` or `split`."""

    def parts(self, settings: TorchvisionDataset, origin: str) -> Parts:
        """See `Kind`."""
        from transfer_influence.vision import torchvision  # slow to import

        cls = getattr(torchvision.datasets, settings.class_name, None)
        if not (inspect.isclass(cls) and issubclass(cls, torchvision.datasets.VisionDataset)):
            raise UserError(
                f"{origin}: class_name: torchvision.datasets has no {settings.class_name!r}; use "
                "one of its classes, such as 'FashionMNIST'."
            )
        _unpack(settings)
        arguments = inspect.signature(cls).parameters
        chooser = next((name for name in ("train", "split") if name in arguments), None)
        if chooser is None:
            if settings.part != "both":
                raise UserError(
                    f"{origin}: part: {settings.class_name} has no official parts, so "
                    f"{settings.part!r} cannot be chosen; leave `part` out and give a `split`."
                )
            wanted = [["only"]]
        elif settings.part == "both":
            wanted = [settings.train_parts, settings.test_parts]
        else:
            wanted = [[settings.part]]
        opened = [
            [_open(cls, _choice(chooser, part, settings, origin), settings, origin) for part in one]
            for one in wanted
        ]
        _check_same_classes(wanted, opened, settings, origin)
        images = [
            _joined(
                [
                    _images(data, f"{settings.class_name} {part} image", settings, origin)
                    for part, data in zip(names, of_part, strict=True)
                ]
            )
            for names, of_part in zip(wanted, opened, strict=True)
        ]
        classes = _classes(opened[0][0], settings) or counted(images)
        return Parts(classes, images[0], images[1] if len(images) == 2 else None)


def _choice(
    chooser: str | None, part: str, settings: TorchvisionDataset, origin: str
) -> dict[str, Any]:
    """Return the argument that makes the class open an official part."""
    if chooser is None:
        return {}
    if chooser == "split":
        return {"split": part}
    if part not in ("train", "test"):
        raise UserError(
            f"{origin}: {settings.class_name} has no part {part!r}; choose 'train' or 'test'."
        )
    return {"train": part == "train"}


def _open(cls: type, choice: dict[str, Any], settings: TorchvisionDataset, origin: str) -> Any:
    from transfer_influence.vision import torchvision  # slow to import

    arguments = inspect.signature(cls).parameters
    passes_on = any(one.kind is one.VAR_KEYWORD for one in arguments.values())
    unknown = [name for name in settings.options if name not in arguments and not passes_on]
    reserved = {"root", "transform", "target_transform", "transforms", "download", "loader"}
    refused = unknown + [name for name in settings.options if name in reserved | set(choice)]
    if refused:
        raise UserError(
            f"{origin}: options: {settings.class_name} takes no option {refused[0]!r}; correct or "
            "remove it."
        )
    given: dict[str, Any] = {"root": settings.root, **choice, **settings.options}
    if "loader" in arguments or issubclass(cls, torchvision.datasets.DatasetFolder):
        given["loader"] = Image.open  # theirs makes all images RGB before anybody can count modes
    try:
        return cls(**given)
    except ValueError as error:  # an argument that the class does not know
        expected = settings.root / _EXPECTED.get(settings.class_name, ".")
        if settings.root.exists() and not expected.exists():
            raise UserError(
                f"{origin}: root: no folder {expected}, which torchvision's {settings.class_name} "
                "expects; unpack the download again, or make an empty folder of that name."
            ) from None
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{origin}: torchvision's {settings.class_name} cannot be opened so ({reason}); "
            "correct the parts or `options`."
        ) from None
    except Exception as error:  # readers fail in many ways; most often nothing is there yet
        failure = error
    if "download" in arguments and settings.download:
        try:
            with _locked(settings.root / f".{settings.class_name}.lock"):
                return cls(**given, download=True)
        except Exception as error:
            failure = error
    reason = " ".join(str(failure).split())[:300]
    package = f"install the package that provides {settings.unpack}, or " * bool(settings.unpack)
    tried = "could not be downloaded" if settings.download else "`download` is false"
    raise UserError(
        f"{origin}: root: torchvision's {settings.class_name} is not in {settings.root} and "
        f"{tried} ({reason}); {package}put its files into {settings.root} by hand."
    )


def _images(data: Any, name: str, settings: TorchvisionDataset, origin: str) -> Images:
    """Return the images of one part, in the order of their paths where the class lists them.

    The class may list them as the disk does, which differs from machine to machine. The files are
    opened here, as the class may make all images RGB before anybody can count modes.
    """
    labels = _labels(data, settings, origin)
    paths = _paths(data)
    if paths is None:
        return Images(labels, lambda index: data[index][0], lambda index: f"{name} {index}")
    order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
    return Images(labels, lambda index: Image.open(paths[index]), lambda index: paths[index]).take(
        order
    )


def _labels(data: Any, settings: TorchvisionDataset, origin: str) -> np.ndarray:
    """Return the labels that the class lists, else those that come with the images."""
    listed = _listed_labels(data)
    if listed is None or not _agrees(data, settings):
        listed = [data[index][1] for index in range(len(data))]
    with suppress(TypeError, ValueError):
        labels = np.asarray(listed).astype(np.int64, casting="same_kind")
        if labels.ndim == 1:
            return labels
    raise UserError(
        f"{origin}: class_name: {type(data).__name__} does not give each image one whole number as "
        "its label; use `kind: folder` or `kind: table`."
    )


def _listed_labels(data: Any) -> Any | None:
    listed = next(_attributes(data, _LABELS), None)
    if listed is None:
        samples = next(_attributes(data, _SAMPLES), None)
        listed = samples and [sample[1] for sample in samples]
    return listed


def _agrees(data: Any, settings: TorchvisionDataset) -> bool:
    """Tell whether one image of each listed label comes with that label.

    Options may ask for other labels than those that the class lists and has names for.
    """
    if not settings.options:
        return True
    listed = _listed_labels(data)
    if listed is None:
        return False
    examples = {str(label): index for index, label in enumerate(listed)}
    return all(data[index][1] == listed[index] for index in examples.values())


def _paths(data: Any) -> list[str] | None:
    """Return the paths of the images, if the class lists them."""
    listed = next(_attributes(data, _PATHS), None)
    if listed is None:
        samples = next(_attributes(data, _SAMPLES), None)
        listed = samples and [sample[0] for sample in samples]
    if not listed or not isinstance(listed[0], str | Path):
        return None
    return [str(path) for path in listed]


def _attributes(data: Any, names: tuple[str, ...]) -> Iterator[Any]:
    return (found for name in names if (found := getattr(data, name, None)) is not None)


def _joined(parts: list[Images]) -> Images:
    return parts[0] if len(parts) == 1 else side_by_side(parts, [0] * len(parts))


def _classes(data: Any, settings: TorchvisionDataset) -> list[str]:
    """Return the class names, made different where two are the same, as ImageNet's cranes are."""
    if not _agrees(data, settings):
        return []
    names = _listed_classes(data)
    marks = getattr(data, "wnids", range(len(names)))
    return [
        f"{name} ({mark})" if names.count(name) > 1 else name
        for name, mark in zip(names, marks, strict=True)
    ]


def _listed_classes(data: Any) -> list[str]:
    found = getattr(data, "classes", None) or getattr(data, "categories", None) or []
    return [str(name) if isinstance(name, str) else ", ".join(name) for name in found]


def _check_same_classes(
    wanted: list[list[str]],
    opened: list[list[Any]],
    settings: TorchvisionDataset,
    origin: str,
) -> None:
    """Check that a label means the same class in all parts.

    Some classes, such as ImageNet, number the class folders of each part by themselves.
    """
    (first, classes), *others = [
        (part, getattr(data, "wnids", None) or _listed_classes(data))
        for names, of_part in zip(wanted, opened, strict=True)
        for part, data in zip(names, of_part, strict=True)
    ]
    for part, own in others:
        for label, (one, other) in enumerate(zip_longest(classes, own, fillvalue="no class")):
            if one != other:
                raise UserError(
                    f"{origin}: label {label} of torchvision's {settings.class_name} is {one!r} in "
                    f"part {first!r} but {other!r} in part {part!r}; give all parts the same "
                    "classes."
                )


def _unpack(settings: TorchvisionDataset) -> None:
    """Unpack the `.gz` files, if there are any, to where torchvision looks."""
    if settings.unpack is None:
        return
    for packed in sorted(settings.unpack.glob("*.gz")):
        unpacked = settings.root / settings.class_name / "raw" / packed.stem
        if not unpacked.exists():
            # Another conversion may be doing the same: both write the same bytes, each to a
            # temporary file of its own.
            with atomic(unpacked) as path, gzip.open(packed) as source, path.open("wb") as target:
                shutil.copyfileobj(source, target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time download: torchvision writes straight to the final files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
