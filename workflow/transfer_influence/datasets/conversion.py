"""Write a data set once, in the form that every job reads."""

import hashlib
import itertools
import json
import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence.config.dataset import DatasetSettings, conversion_settings, find_with_parts
from transfer_influence.config.study import Unit, check_units
from transfer_influence.datasets.beton import Contents, write_beton
from transfer_influence.datasets.images import Images
from transfer_influence.datasets.opening import RawDataset, check_no_class_is_empty, open_dataset
from transfer_influence.datasets.originals import NAME, original_files, write_originals
from transfer_influence.datasets.sidecar import FORMAT, Finding, Sidecar
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.provenance import Origin, with_companions

log = logging.getLogger(__name__)


def convert(
    name: str,
    folders: list[Path],
    output: Path,
    unit: Unit = "class",
    least: int = 2,
    workers: int = 1,
    code: str = "",
) -> None:
    """Write `{train,test}.{beton,labels.npy,examples.parquet}` and, last, `dataset.json`.

    `examples.parquet` has a row for each image of the `.beton`, in its order: `label` (int64),
    `name` (its path, or what else tells it from others) and `digest` (of height, width and pixels
    as stored, before JPEG; 16 hexadecimal digits). `originals.parquet` has a row for each file that
    they are made from, see `write_originals`.

    Args:
        name: name of the data set.
        folders: where to look for `{name}.yaml`, in order.
        output: folder to write to; made if it is not there.
        unit: what the study judges.
        least: how many of those it needs.
        workers: threads that read images.
        code: digest of the code, for provenance.

    Raises:
        UserError: the settings are wrong, do not fit the images, or refuse what a check found.
    """
    # Described before it is read: what changes meanwhile is then seen to have changed.
    settings = json.loads(conversion_settings(name, folders))
    raw = open_dataset(name, folders)
    check_units(name, unit, {"class": len(raw.classes), "example": len(raw.train)}[unit], least)
    log.info(
        "%s: %d classes, %d training and %d test images",
        name,
        len(raw.classes),
        len(raw.train),
        len(raw.test),
    )
    (output / "dataset.json").unlink(missing_ok=True)  # it stands for files that are whole
    parts = [settings for settings, _ in find_with_parts(name, folders).values()]
    images = itertools.chain.from_iterable(map(_all_names, (raw.train, raw.test)))
    write_originals(original_files(parts, images), output / NAME, workers)
    test = _write(output, "test", raw.test, raw, {}, workers)
    # Test images first: of an image that stands in both, the test image stays.
    tested = dict(zip(test.pixel_digests, _names(raw.test, test.kept), strict=True))
    train = _write(output, "train", raw.train, raw, tested, workers)
    overlap = _overlap(raw, train, tested)
    unreadable = train.unreadable + test.unreadable
    if unreadable:
        log.warning("%s: %d unreadable images left out: %s", name, *_told(unreadable))
    train_labels, test_labels = raw.train.labels[train.kept], raw.test.labels[test.kept]
    for part, labels in (("train", train_labels), ("test", test_labels)):
        check_no_class_is_empty(labels, raw.classes, f"data set {name!r}: {part} part")
    sizes = np.concatenate([train.sizes, test.sizes])
    mean, std = _mean_and_std(train)
    given = raw.settings.normalisation
    sidecar = Sidecar(
        format=FORMAT,
        ffcv=version("ffcv"),
        name=name,
        classes=raw.classes,
        train_count=len(train_labels),
        test_count=len(test_labels),
        train_class_counts=_class_counts(train_labels, raw.classes),
        test_class_counts=_class_counts(test_labels, raw.classes),
        mean=given.mean if given else mean,
        std=given.std if given else std,
        modes={
            mode: train.modes.get(mode, 0) + test.modes.get(mode, 0)
            for mode in sorted(train.modes | test.modes)
        },
        unreadable=Finding.of(unreadable),
        overlap=Finding.of(overlap),
        overlap_dropped=raw.settings.overlap == "drop",
        image_size=sizes[0].tolist() if (sizes == sizes[0]).all() else None,
        largest_size=sizes.max(axis=0).tolist(),
        digest=_digest(train, test, raw.settings),
        storage=raw.settings.storage,
        licence=raw.licence,
        citation=raw.citation,
        provenance=_vouching(output, Origin(settings, {}, code)),
    )
    with atomic(output / "dataset.json") as path:
        path.write_text(sidecar.model_dump_json(indent=2) + "\n")
    log.info("%s: digest %s, written to %s", name, sidecar.digest[:12], output)


def _vouching(output: Path, origin: Origin) -> dict[str, Any]:
    """Return the provenance of the sidecar, which vouches for all files beside it."""
    files = {path.name: path for path in sorted(output.iterdir()) if path.name[0] != "."}
    return json.loads(with_companions(origin.provenance(), files))


def _write(
    output: Path,
    part: str,
    images: Images,
    raw: RawDataset,
    unwanted: dict[str, str],
    workers: int,
) -> Contents:
    """Write the three files of a part."""
    settings = raw.settings
    contents = write_beton(
        output / f"{part}.beton",
        images,
        settings.storage,
        skip_unreadable=settings.unreadable == "skip",
        unwanted=unwanted if settings.overlap == "drop" else (),
        workers=workers,
    )
    labels = images.labels[contents.kept]
    with atomic(output / f"{part}.labels.npy") as path:
        np.save(path, labels, allow_pickle=False)
    columns = {
        "label": pa.array(labels),
        "name": pa.array(_names(images, contents.kept), pa.string()),
        "digest": pa.array(contents.pixel_digests, pa.string()),
    }
    with atomic(output / f"{part}.examples.parquet") as path:
        pq.write_table(pa.table(columns), path, compression="zstd")
    return contents


def _all_names(images: Images) -> list[str]:
    return _names(images, np.arange(len(images)))


def _names(images: Images, indices: np.ndarray) -> list[str]:
    return [images.name(int(index)) for index in indices]


def _overlap(raw: RawDataset, train: Contents, tested: dict[str, str]) -> list[str]:
    """Return the training images that are test images as well, written or dropped.

    Args:
        raw: the data set.
        train: what was written of its training images.
        tested: names of the test images, by the digest of their pixels.

    Raises:
        UserError: there are some, and the data set's file refuses them.
    """
    written = zip(train.kept.tolist(), train.pixel_digests, strict=True)
    found = train.dropped | {index: digest for index, digest in written if digest in tested}
    pairs = [f"{raw.train.name(index)} = {tested[found[index]]}" for index in sorted(found)]
    if not pairs:
        return []
    if raw.settings.overlap == "error":
        raise UserError(
            f"data set {raw.name!r}: {len(pairs)} training images are test images as well, such as "
            f"{pairs[0]}; remove them, or set `overlap: drop` or `report`."
        )
    done = "dropped" if raw.settings.overlap == "drop" else "kept"
    log.warning(
        "%s: %d training images are test images as well (%s): %s",
        raw.name,
        len(pairs),
        done,
        _told(pairs)[1],
    )
    return pairs


def _told(names: list[str]) -> tuple[int, str]:
    """Return how many there are, and the first few."""
    return len(names), ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _digest(train: Contents, test: Contents, settings: DatasetSettings) -> str:
    """Digest what a model can see: pixels before storage, how they are stored and normalised."""
    decided = train.digest + test.digest + settings.storage.model_dump_json().encode()
    if settings.normalisation is not None:  # else it follows from the pixels
        decided += settings.normalisation.model_dump_json().encode()
    return hashlib.sha256(decided).hexdigest()


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
