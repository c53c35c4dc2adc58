"""What conversion checks of each image, and what it tells of them."""

import hashlib
import itertools
import json
import logging
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import convert_arrays, opened, random_images, refused, write_settings
from PIL import Image

from transfer_influence.config.dataset import Split, check_places, describe_dataset, find_dataset
from transfer_influence.datasets.beton import decode_all
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.held_out import share_of
from transfer_influence.datasets.sidecar import NAMED, Finding, Sidecar, read_sidecar
from transfer_influence.errors import UserError


def save(path: Path, seed: int, mode: str = "RGB", side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.fromarray(random_images(1, side, side, seed)[0])
    if mode in ("P", "1"):
        noise = noise.convert("L")
    noise.convert(mode).save(path)


def folders(root: Path, count: int = 3) -> dict[str, Any]:
    """Write two classes of `count` training and `count` test images, and return their settings."""
    seed = 0
    for part in ("train", "test"):
        for name in ("a", "b"):
            for index in range(count):
                save(root / part / name / f"{index}.png", seed)
                seed += 1
    return {"kind": "folder", "train": str(root / "train"), "test": str(root / "test")}


def run(folder: Path, **values: Any) -> Sidecar:
    write_settings(folder, "made", **values)
    convert("made", [folder], folder / "out")
    return read_sidecar(folder / "out" / "dataset.json")


def cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


def examples(folder: Path, part: str) -> dict[str, list[Any]]:
    return pq.read_table(folder / "out" / f"{part}.examples.parquet").to_pydict()


# Unreadable images


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_an_image_cut_short_counts_as_unreadable(tmp_path: Path, suffix: str) -> None:
    values = folders(tmp_path)
    broken = tmp_path / "train" / "b" / f"broken{suffix}"
    save(broken, 99, side=64)
    assert run(tmp_path, **values).train_count == 7
    cut(broken, 0.6)
    with pytest.raises(UserError, match=rf"broken\{suffix}: not readable .*`unreadable: skip`"):
        run(tmp_path, **values)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert run(tmp_path, **values, unreadable="skip").unreadable.names == [str(broken)]


def test_unreadable_images_are_left_out_everywhere(tmp_path: Path) -> None:
    values = folders(tmp_path)
    whole = run(tmp_path, **values)
    kept = [decode_all(tmp_path / "out" / f"{part}.beton") for part in ("train", "test")]
    cut(tmp_path / "train" / "a" / "1.png", 0.5)
    (tmp_path / "test" / "b" / "2.png").write_text("no image")
    sidecar = run(tmp_path, **values, unreadable="skip")
    assert sidecar.unreadable.count == 2
    assert [Path(name).parts[-3:] for name in sidecar.unreadable.names] == [
        ("train", "a", "1.png"),
        ("test", "b", "2.png"),
    ]
    assert (sidecar.train_class_counts, sidecar.test_class_counts) == ([2, 3], [3, 2])
    assert (sidecar.train_count, sidecar.test_count) == (5, 5)
    for part, left_out, before in (("train", 1, kept[0]), ("test", 5, kept[1])):
        rest = np.delete(np.arange(6), left_out)
        assert np.array_equal(decode_all(tmp_path / "out" / f"{part}.beton"), before[rest])
        labels = np.load(tmp_path / "out" / f"{part}.labels.npy", allow_pickle=False)
        assert labels.tolist() == np.repeat([0, 1], 3)[rest].tolist()
        assert examples(tmp_path, part)["label"] == labels.tolist()
        assert (
            str(tmp_path / part / "ab"[left_out // 3])
            in examples(tmp_path, part)["name"][0 if left_out < 3 else -1]
        )
    assert sum(sidecar.modes.values()) == 10
    assert sidecar.digest != whole.digest


def test_skipping_leaves_the_same_digest_as_removing(tmp_path: Path) -> None:
    values = folders(tmp_path)
    broken = tmp_path / "train" / "a" / "1.png"
    cut(broken, 0.5)
    skipped = run(tmp_path, **values, unreadable="skip")
    broken.unlink()
    removed = run(tmp_path, **values)
    assert skipped.digest == removed.digest
    assert skipped.mean == removed.mean
    assert (skipped.unreadable.count, removed.unreadable.count) == (1, 0)


def test_a_class_of_which_no_image_is_left_is_refused(tmp_path: Path) -> None:
    values = folders(tmp_path, count=1)
    (tmp_path / "train" / "b" / "0.png").write_text("no image")
    with pytest.raises(UserError, match="train part: class 'b' has no images"):
        run(tmp_path, **values, unreadable="skip")
    (tmp_path / "train" / "a" / "0.png").write_text("no image")
    with pytest.raises(UserError, match=r"train\.beton: no image is left"):
        run(tmp_path, **values, unreadable="skip")


def test_images_of_a_table_that_are_missing(tmp_path: Path) -> None:
    folders(tmp_path)
    rows = [f"train/{name}/{index}.png,{name}" for name in "ab" for index in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]))
    values = {"kind": "table", "train": str(tmp_path / "t.csv"), "images": str(tmp_path)}
    values["split"] = {"train_per_class": 2}
    with pytest.raises(UserError, match=r"train/[ab]/3\.png: not readable"):
        run(tmp_path, **values)
    sidecar = run(tmp_path, **values, unreadable="skip")
    assert sidecar.unreadable.count == 2
    assert sidecar.train_count + sidecar.test_count == 6


def test_long_lists_are_cut() -> None:
    found = Finding.of([str(index) for index in range(NAMED + 5)])
    assert found.count == NAMED + 5
    assert found.names == [str(index) for index in range(NAMED)]


# Images that are in both parts


def both(tmp_path: Path) -> dict[str, Any]:
    """Put test image a/2 among the training images of b, as another file format."""
    values = folders(tmp_path)
    Image.open(tmp_path / "test" / "a" / "2.png").save(tmp_path / "train" / "b" / "9.bmp")
    return values


def test_training_images_that_are_test_images_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean = run(tmp_path / "clean", **folders(tmp_path / "clean"))
    assert clean.overlap == Finding()
    with caplog.at_level(logging.WARNING):
        sidecar = run(tmp_path, **both(tmp_path))
    pair = f"{tmp_path}/train/b/9.bmp = {tmp_path}/test/a/2.png"
    assert sidecar.overlap == Finding(count=1, names=[pair])
    assert not sidecar.overlap_dropped
    assert (sidecar.train_count, sidecar.test_count) == (7, 6)
    assert f"1 training images are test images as well (kept): {pair}" in caplog.text


def test_training_images_that_are_test_images_are_dropped_or_refused(tmp_path: Path) -> None:
    values = both(tmp_path)
    sidecar = run(tmp_path, **values, overlap="drop")
    assert sidecar.overlap.count == 1
    assert sidecar.overlap_dropped
    assert (sidecar.train_class_counts, sidecar.test_class_counts) == ([3, 3], [3, 3])
    assert not set(examples(tmp_path, "train")["digest"]) & set(
        examples(tmp_path, "test")["digest"]
    )
    with pytest.raises(UserError, match=r"1 training images are test .*9\.bmp = .*overlap: drop"):
        run(tmp_path, **values, overlap="error")
    assert not (tmp_path / "out" / "dataset.json").exists()


# What each image was


def test_modes_are_counted_and_all_become_rgb(tmp_path: Path) -> None:
    values = folders(tmp_path)
    modes = {"L": ".png", "CMYK": ".jpg", "RGBA": ".png", "LA": ".png", "P": ".png", "1": ".png"}
    for index, (mode, suffix) in enumerate(modes.items()):
        save(tmp_path / "train" / "a" / f"x{index}{suffix}", 50 + index, mode)
    for changes in ({}, {"image_size": 8}):
        found = run(tmp_path, **values, **changes)
        assert found.modes == {"RGB": 12, **dict.fromkeys(modes, 1)}
    images = decode_all(tmp_path / "out" / "train.beton")
    expected = Image.open(tmp_path / "train" / "a" / "x1.jpg").convert("RGB")
    assert np.array_equal(images[4], np.asarray(expected))
    write_settings(tmp_path, "other", **values)
    union = run(tmp_path / "union", **folders(tmp_path / "union"))
    assert union.modes == {"RGB": 12}
    write_settings(tmp_path, "both", kind="union", parts=["made", "other"], classes=list("abcd"))
    convert("both", [tmp_path], tmp_path / "both")
    assert read_sidecar(tmp_path / "both" / "dataset.json").modes["CMYK"] == 2


def test_examples_name_the_images_in_order(tmp_path: Path) -> None:
    values = folders(tmp_path)
    run(tmp_path, **values)
    for part in ("train", "test"):
        table = examples(tmp_path, part)
        assert list(table) == ["label", "name", "digest"]
        names = [
            str(tmp_path / part / name / f"{index}.png") for name in "ab" for index in range(3)
        ]
        assert table["name"] == names
        assert table["label"] == [0, 0, 0, 1, 1, 1]
        pixels = decode_all(tmp_path / "out" / f"{part}.beton")
        salt = struct.pack("<2q", 8, 8)
        assert table["digest"] == [
            hashlib.blake2b(image.tobytes(), digest_size=8, salt=salt).hexdigest()
            for image in pixels
        ]


def test_the_digest_of_an_image_tells_its_shape(tmp_path: Path) -> None:
    # Eight of its bytes in a row are the same for both shapes.
    for index, size in enumerate([(2, 8), (8, 2), (4, 4)]):
        for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")):
            path = tmp_path / part / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (7, 7, 7)).save(path)
    values = {"kind": "folder", "train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    run(tmp_path, **values)
    assert len(set(examples(tmp_path, "train")["digest"])) == 3


# Normalisation


def test_a_given_normalisation_is_used_and_decides_the_digest(tmp_path: Path) -> None:
    images = random_images(12, 4, 4)
    computed = read_sidecar(convert_arrays(tmp_path / "1", images) / "dataset.json")
    given = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 0.5, 0.25]}
    sidecars = [
        read_sidecar(convert_arrays(tmp_path / name, images, **settings) / "dataset.json")
        for name, settings in (
            ("2", {"normalisation": given}),
            ("3", {"normalisation": {**given, "mean": [0.1, 0.2, 0.4]}}),
        )
    ]
    assert (sidecars[0].mean, sidecars[0].std) == (given["mean"], given["std"])
    assert len({computed.digest, *(sidecar.digest for sidecar in sidecars)}) == 3
    refused(
        tmp_path,
        "std",
        kind="arrays",
        source="x.npz",
        normalisation={"mean": [0, 0, 0], "std": [1, 0, 1]},
    )


# Fractions


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (5000, 0.1, 500),
        (1, 0.1, 1),
        (4, 0.1, 1),
        (5, 0.3, 2),
        (25, 0.1, 3),
        (50, 0.29, 15),
        (3, 0.99, 3),
    ],
)
def test_share_of(count: int, share: float, expected: int) -> None:
    assert share_of(count, share) == expected


def test_a_fraction_is_drawn_from_each_class(tmp_path: Path) -> None:
    labels = np.repeat([0, 1, 2], [2, 25, 100])
    images = np.arange(127, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "one.npz", images=images, labels=labels)
    values = {"kind": "arrays", "source": str(tmp_path / "one.npz")}
    found = opened(tmp_path, **values, split={"train_fraction": 0.1})
    assert np.bincount(found.train.labels).tolist() == [1, 3, 10]
    assert np.bincount(found.test.labels).tolist() == [1, 22, 90]
    found = opened(tmp_path, **values, split={"train_fraction": 0.1, "test_per_class": 1})
    assert np.bincount(found.test.labels).tolist() == [1, 1, 1]
    refused(tmp_path, "class '0' has 2 images but 3 are", **values, split={"train_fraction": 0.9})
    arrays = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "two.npz", **arrays, test_images=images[::9], test_labels=labels[::9])
    values["source"] = str(tmp_path / "two.npz")
    found = opened(tmp_path, **values, split={"train_fraction": 0.25})
    assert np.bincount(found.train.labels).tolist() == [1, 6, 25]
    assert len(found.test) == len(labels[::9])
    with pytest.raises(ValueError, match="either `train_per_class` or `train_fraction`"):
        Split(train_per_class=3, train_fraction=0.5)


# What has to be there


def test_all_that_is_missing_is_said_at_once(tmp_path: Path) -> None:
    here = [tmp_path]
    write_settings(tmp_path, "folders", kind="folder", train="t", test="u")
    write_settings(tmp_path, "arrays", kind="arrays", source="x.npz")
    write_settings(tmp_path, "packaged", kind="arrays", source="sklearn.digits")
    write_settings(tmp_path, "union", kind="union", parts=["arrays", "table"])
    write_settings(
        tmp_path, "table", kind="table", train="t.csv", test_list="b", train_list="a",
        images=str(tmp_path / "scans" / "part_*" / "images"),
    )  # fmt: skip
    write_settings(tmp_path, "loads", kind="torchvision", class_name="CIFAR10", root="c")
    write_settings(
        tmp_path, "stays", kind="torchvision", class_name="CIFAR10", root="d", download=False
    )
    check_places(["packaged", "loads"], here)
    with pytest.raises(UserError) as mistake:
        check_places(["folders", "union", "loads", "stays", "arrays"], here)
    said = str(mistake.value)
    assert said.splitlines() == [
        "4 data sets are missing:",
        f"  folders: no t (`train`), no u (`test`); see {tmp_path}/folders.yaml",
        f"  arrays: no x.npz (`source`); see {tmp_path}/arrays.yaml",
        f"  table: no t.csv (`train`), no a (`train_list`), no b (`test_list`), "
        f"no {tmp_path}/scans (`images`); see {tmp_path}/table.yaml",
        f"  stays: no d (`root`); see {tmp_path}/stays.yaml",
        "Download each to the place named, or change that key in its file (relative paths start at "
        "the working folder).",
        "loads is downloaded when it is converted, unless the files are there.",
    ]
    write_settings(tmp_path, "also", kind="torchvision", class_name="MNIST", root="c")
    with pytest.raises(UserError, match="\nloads, also are downloaded when they are converted, "):
        check_places(["loads", "stays", "also"], here)
    with pytest.raises(UserError, match=r"the working folder\)\.$"):
        check_places(["stays", "packaged"], here)


def test_empty_folders_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).parents[2] / "config" / "datasets"
    names = [path.stem for path in shipped.glob("*.yaml")]
    with pytest.raises(UserError) as mistake:
        check_places(names, [shipped])
    missing = {line.split(":")[0].strip() for line in str(mistake.value).splitlines()}
    assert {"imagenet", "stanford_cars", "birdsnap", "chestxray14"} <= missing
    for name in names:
        for _, place in find_dataset(name, [shipped])[0].places:
            place.mkdir(parents=True, exist_ok=True)
    check_places(names, [shipped])


# What is noticed


def test_names_are_read_again_only_where_a_folder_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = folders(tmp_path)
    (tmp_path / "train" / "a" / "deep").mkdir()
    write_settings(tmp_path, "made", **values)
    memory = tmp_path / "state" / "listings"

    def described() -> str:
        return describe_dataset("made", [tmp_path], memory)

    hours = itertools.count()

    def age() -> None:
        now = next(hours)
        for place, _, _ in os.walk(tmp_path):
            os.utime(place, (3600 * now, 3600 * now))

    expected = describe_dataset("made", [tmp_path])
    age()
    assert described() == expected
    assert not memory.exists(), "no run was here: leave no trace"
    memory.parent.mkdir()
    assert described() == expected
    assert len(list(memory.iterdir())) == 1
    with monkeypatch.context() as context:
        context.setattr(os, "walk", None)
        assert described() == expected
    for change in (
        lambda: save(tmp_path / "train" / "a" / "deep" / "new.png", 1),
        lambda: (tmp_path / "train" / "b" / "0.png").unlink(),
        lambda: save(tmp_path / "test" / "c" / "0.png", 1),
    ):
        change()
        before, expected = expected, describe_dataset("made", [tmp_path])
        assert described() == expected != before
        assert described() == expected
        age()
        assert described() == expected
    # A folder that has only just changed is not relied on.
    for note in memory.iterdir():
        note.unlink()
    save(tmp_path / "train" / "a" / "last.png", 1)
    described()
    assert not list(memory.iterdir())
    assert json.loads(expected)["made"]["listing"]
