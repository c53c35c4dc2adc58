"""Write a data set once, in the form that every job reads."""

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

import numpy as np

from transfer_influence.config.storage import Storage
from transfer_influence.config.study import Unit, check_units
from transfer_influence.datasets.beton import Contents, write_beton
from transfer_influence.datasets.kinds import open_dataset
from transfer_influence.datasets.sidecar import FORMAT, Sidecar
from transfer_influence.files import atomic

log = logging.getLogger(__name__)


def convert(
    name: str, folders: list[Path], output: Path, unit: Unit = "class", least: int = 2
) -> None:
    """Write `{train,test}.beton`, `{train,test}.labels.npy` and, last, `dataset.json`.

    Args:
        name: name of the data set.
        folders: where to look for `{name}.yaml`, in order.
        output: folder to write to; made if it is not there.
        unit: what the study judges.
        least: how many of those it needs.

    Raises:
        UserError: the settings are wrong, do not fit the images, or an image cannot be read.
    """
    raw = open_dataset(name, folders)
    check_units(name, unit, {"class": len(raw.classes), "example": len(raw.train)}[unit], least)
    log.info(
        "%s: %d classes, %d training and %d test images",
        *(name, len(raw.classes), len(raw.train), len(raw.test)),
    )
    (output / "dataset.json").unlink(missing_ok=True)  # it stands for files that are whole
    contents = {}
    for split, images in (("train", raw.train), ("test", raw.test)):
        contents[split] = write_beton(output / f"{split}.beton", images, raw.storage)
        with atomic(output / f"{split}.labels.npy") as path:
            np.save(path, images.labels, allow_pickle=False)
    train, test = contents["train"], contents["test"]
    sizes = np.concatenate([train.sizes, test.sizes])
    mean, std = _mean_and_std(train)
    sidecar = Sidecar(
        format=FORMAT,
        ffcv=version("ffcv"),
        name=name,
        classes=raw.classes,
        train_count=len(raw.train),
        test_count=len(raw.test),
        train_class_counts=_class_counts(raw.train.labels, raw.classes),
        test_class_counts=_class_counts(raw.test.labels, raw.classes),
        mean=mean,
        std=std,
        image_size=sizes[0].tolist() if (sizes == sizes[0]).all() else None,
        largest_size=sizes.max(axis=0).tolist(),
        digest=_digest(train, test, raw.storage),
        storage=raw.storage,
        licence=raw.licence,
        citation=raw.citation,
    )
    with atomic(output / "dataset.json") as path:
        path.write_text(sidecar.model_dump_json(indent=2) + "\n")
    log.info("%s: digest %s, written to %s", name, sidecar.digest[:12], output)


def _digest(train: Contents, test: Contents, storage: Storage) -> str:
    """Digest what a model can see: the pixels before storage, and how they are stored."""
    stored = storage.model_dump_json().encode()
    return hashlib.sha256(train.digest + test.digest + stored).hexdigest()


def _class_counts(labels: np.ndarray, classes: list[str]) -> list[int]:
    return np.bincount(labels, minlength=len(classes)).tolist()


def _mean_and_std(contents: Contents) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, white being 1."""
    values = np.arange(256) / 255
    shares = contents.histogram / contents.histogram.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    std[std == 0] = 1.0  # a channel that never changes has nothing to divide by
    return mean.tolist(), std.tolist()
