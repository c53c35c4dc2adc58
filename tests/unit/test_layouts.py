"""The data sets that come along, read from miniatures of what one downloads.

Each miniature has the true folders, file names and annotation files. Every image has a number that
its colour tells, so that what was converted can be compared with what was drawn.
"""

import hashlib
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from conftest import opened, refused, write_settings
from PIL import Image

from transfer_influence.config.storage import Storage
from transfer_influence.datasets.beton import decode_all
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.vision import torchvision

DATASETS = Path(__file__).parents[2] / "config" / "datasets"
Truth = dict[str, dict[int, str]]  # of each part, or of all: class name by number of the image


def picture(path: Path, number: int) -> None:
    """Draw image `number`, below 1000, so that it survives being a JPEG twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour(number)).save(path)


def colour(number: int) -> tuple[int, ...]:
    return tuple(10 + 25 * int(digit) for digit in f"{number:03d}")


def number_of(pixels: np.ndarray) -> int:
    digits = np.rint((pixels.mean(axis=(0, 1)) - 10) / 25).astype(int)
    return int("".join(map(str, digits)))


class Numbers:
    """Draws images with numbers that go up, and remembers what they are."""

    def __init__(self) -> None:
        self.next = 0
        self.truth: Truth = {}

    def __call__(self, path: Path, part: str, name: str) -> None:
        picture(path, self.next)
        self.truth.setdefault(part, {})[self.next] = name
        self.next += 1


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def imagenet(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    words = {
        "n01440764": ("tench", "Tinca tinca"),
        "n02012849": ("crane",),
        "n03126707": ("crane",),
    }
    names = ["tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)"]
    for part, count in (("train", 3), ("val", 2)):
        for wnid, name in zip(words, names, strict=True):
            for index in range(count):
                file = f"{wnid}_{index}.JPEG"
                draw(root / part / wnid / file, {"val": "test"}.get(part, part), name)
    torch.save((words, [wnid for wnid in words for _ in range(2)]), root / "meta.bin")
    return draw.truth


def aircraft(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ["707-320", "A300B4", "Gulfstream IV"]
    lines: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part in lines:
        for variant in reversed(variants):
            file = f"{draw.next:07d}"
            lines[part].append(f"{file} {variant}")
            official = "test" if part == "test" else "train"
            draw(data / "images" / f"{file}.jpg", official, variant)
    lines["trainval"] = lines["train"] + lines["val"]
    for part, of_part in lines.items():
        write_lines(data / f"images_variant_{part}.txt", of_part)
    write_lines(data / "variants.txt", variants)
    return draw.truth


def birdsnap(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    for part in ("train", "test"):
        for name in ("Acadian_Flycatcher", "Zone_tailed_Hawk"):
            for index in range(2):
                draw(root / part / name / f"{index}.jpg", part, name)
    return draw.truth


def caltech101(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    folder = root / "caltech101" / "101_ObjectCategories"
    picture(folder / "BACKGROUND_Google" / "image_0001.jpg", 899)
    for name in ("Faces", "accordion", "airplanes"):
        for index in range(1, 33):
            draw(folder / name / f"image_{index:04d}.jpg", "all", name)
    return draw.truth


def caltech256(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    folder = root / "caltech256" / "256_ObjectCategories"
    for label, name in enumerate(("001.ak47", "002.american-flag", "003.backpack"), 1):
        for index in range(1, 62):
            draw(folder / name / f"{label:03d}_{index:04d}.jpg", "all", name)
    (folder / "002.american-flag" / "greg").mkdir()  # 056.dog has such a folder
    return draw.truth


def cifar(cls: str, files: dict[str, list[str]], key: str, labels: str, meta: str) -> Any:
    def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> Truth:
        reader = getattr(torchvision.datasets, cls)
        folder = root / reader.base_folder
        folder.mkdir(parents=True)
        names = ["airplane", "frog", "truck"]
        truth: Truth = {"train": {}, "test": {}}
        number = 0
        for part, of_part in files.items():
            for file in of_part:
                batch = list(range(number, number + 60))
                pixels = np.array([colour(one) for one in batch], np.uint8)
                data = pixels[:, :, None].repeat(1024, axis=2).reshape(60, 3072)
                entry = {"data": data, labels: [one % 3 for one in batch]}
                (folder / file).write_bytes(pickle.dumps(entry))
                truth[part] |= {one: names[one % 3] for one in batch}
                number += 60
        (folder / meta).write_bytes(pickle.dumps({key: names}))
        # The sums of the true files, which torchvision checks, are those of the miniature here.
        for part, of_part in files.items():
            monkeypatch.setattr(
                reader, f"{part}_list", [[file, md5(folder / file)] for file in of_part]
            )
        monkeypatch.setattr(
            reader, "meta", {"filename": meta, "key": key, "md5": md5(folder / meta)}
        )
        return truth

    return make


cifar10 = cifar(
    "CIFAR10",
    {"train": [f"data_batch_{index}" for index in range(1, 6)], "test": ["test_batch"]},
    "label_names",
    "labels",
    "batches.meta",
)
cifar100 = cifar(
    "CIFAR100",
    {"train": ["train"], "test": ["test"]},
    "fine_label_names",
    "fine_labels",
    "meta",
)


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    reader = torchvision.datasets.Flowers102
    folder = root / "flowers-102"
    parts = [part for part in ("tstid", "trnid", "valid") for _ in range(102)]
    labels = [1 + index % 102 for index in range(len(parts))]
    for index, (part, label) in enumerate(zip(parts, labels, strict=True), 1):
        official = "test" if part == "tstid" else "train"
        draw(folder / "jpg" / f"image_{index:05d}.jpg", official, reader.classes[label - 1])
    ids = {
        part: np.flatnonzero([part == one for one in parts])[None] + 1
        for part in dict.fromkeys(parts)
    }
    scipy.io.savemat(folder / "setid.mat", ids)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    sums = {
        key: (file, md5(folder / file))
        for key, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(reader, "_file_dict", {**reader._file_dict, **sums})
    return draw.truth


def food(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    for part, count in (("train", 3), ("test", 1)):
        listed: dict[str, list[str]] = {}
        for name in ("waffles", "apple_pie"):
            for index in range(count):
                file = f"{name}/{part}{index}"
                listed.setdefault(name, []).append(file)
                draw(root / "food-101" / "images" / f"{file}.jpg", part, name)
        write_lines(root / "food-101" / "meta" / f"{part}.json", [json.dumps(listed)])
    return draw.truth


def pets(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    folder = root / "oxford-iiit-pet"
    breeds = [("Abyssinian", 1), ("american_bulldog", 2), ("Russian_Blue", 1)]
    for part, count in (("trainval", 2), ("test", 1)):
        lines = []
        for label, (breed, species) in enumerate(breeds, 1):
            for _index in range(count):
                file = f"{breed}_{draw.next}"
                lines.append(f"{file} {label} {species} {label}")
                name = breed.replace("_", " ").title()
                draw(folder / "images" / f"{file}.jpg", {"trainval": "train"}.get(part, part), name)
        write_lines(folder / "annotations" / f"{part}.txt", lines)
    return draw.truth


def stanford_cars(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(
        folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], object)}
    )
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    for part, annotations in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = []
        for index, label in enumerate((3, 1, 2, 1), 1):
            rows.append((1, 1, 8, 8, np.uint8(label), f"{index:05d}.jpg"))
            draw(folder / f"cars_{part}" / rows[-1][-1], part, names[label - 1])
        table = np.array(rows, dtype=[(field, object) for field in fields])
        scipy.io.savemat(folder / annotations, {"annotations": table[None]})
    return draw.truth


def sun397(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    names = ["/a/abbey", "/a/apse/indoor"]
    for name in names:
        for index in np.random.default_rng(0).permutation(101):  # not in the order of names
            draw(root / "SUN397" / name[1:] / f"sun_{index:03d}.jpg", "all", name[3:])
    write_lines(root / "SUN397" / "ClassName.txt", names)
    return draw.truth


def chestxray14(root: Path, _: pytest.MonkeyPatch) -> Truth:
    draw = Numbers()
    findings = ["No Finding", "Pneumothorax|Emphysema", "Hernia", "Edema|Pneumothorax"]
    rows = [
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
        "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    ]
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for patient in range(12):
        file = f"{patient + 1:08d}_000.png"
        labels = findings[patient % 4]
        rows.append(f"{file},{labels},0,{patient + 1},58,M,PA,2682,2749,0.143,0.143,")
        part = "test" if patient >= 8 else "train"
        lists[part].append(file)
        name = "Pneumothorax" if "Pneumothorax" in labels else "no Pneumothorax"
        draw(root / f"images_{patient // 5 + 1:03d}" / "images" / file, part, name)
    write_lines(root / "Data_Entry_2017.csv", rows)
    write_lines(root / "train_val_list.txt", lists["train"])
    write_lines(root / "test_list.txt", lists["test"])
    return draw.truth


def settings_of(name: str, root: Path) -> dict[str, Any]:
    """Return the settings that come along, with `data/{name}` moved to `root`."""
    text = (DATASETS / f"{name}.yaml").read_text()
    values = yaml.safe_load(text.replace(f"data/{name}", str(root)))
    assert str(root) in str(values)
    return {**values, "download": False} if values["kind"] == "torchvision" else values


def converted(folder: Path, part: str) -> dict[int, str]:
    """Return the class of each converted image, by its number."""
    sidecar = read_sidecar(folder / "dataset.json")
    labels = np.load(folder / f"{part}.labels.npy", allow_pickle=False)
    images = decode_all(folder / f"{part}.beton")
    numbers = [number_of(image) for image in images]
    assert len(set(numbers)) == len(numbers)
    return {number: sidecar.classes[label] for number, label in zip(numbers, labels, strict=True)}


LAYOUTS: list[tuple[Callable[..., Truth], dict[str, int] | None]] = [
    *((make, None) for make in (imagenet, aircraft, birdsnap, cifar10, cifar100, flowers)),
    *((make, None) for make in (food, pets, stanford_cars, chestxray14)),
    (caltech101, {"train": 30, "test": 2}),
    (caltech256, {"train": 60, "test": 1}),
    (sun397, {"train": 50, "test": 50}),
]
NAMES = {cifar10: "cifar10", cifar100: "cifar100"}


@pytest.mark.parametrize(
    ("make", "drawn"), LAYOUTS, ids=[NAMES.get(make, make.__name__) for make, _ in LAYOUTS]
)
def test_a_data_set_is_read_as_downloaded(
    make: Callable[..., Truth],
    drawn: dict[str, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = NAMES.get(make, make.__name__)
    truth = make(tmp_path / "root", monkeypatch)
    values = settings_of(name, tmp_path / "root")
    write_settings(tmp_path, name, **values)
    convert(name, [tmp_path], tmp_path / "out")
    train, test = (converted(tmp_path / "out", part) for part in ("train", "test"))
    if drawn is None:
        assert (train, test) == (truth["train"], truth["test"])
    else:
        assert (train | test).items() <= truth["all"].items()
        for part, per_class in ((train, drawn["train"]), (test, drawn["test"])):
            assert set(Counter(part.values()).values()) == {per_class}
        assert not train.keys() & test.keys()
    sidecar = read_sidecar(tmp_path / "out" / "dataset.json")
    assert sidecar.mean == values["normalisation"]["mean"]
    assert sidecar.std == values["normalisation"]["std"]
    assert sidecar.storage == Storage(**values["storage"])


def test_every_data_set_that_comes_along_has_its_miniature_or_is_part_of_the_demo() -> None:
    tested = {NAMES.get(make, make.__name__) for make, _ in LAYOUTS}
    demo = {"digits_and_fashion", "fashion_fewshot", "fashion_mnist", "mnist_digits", "uci_digits"}
    fractions = {"cifar10_10", "cifar10_25", "cifar10_50"}
    assert {path.stem for path in DATASETS.glob("*.yaml")} == tested | demo | fractions


def test_fractions_of_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = cifar10(tmp_path, monkeypatch)
    train = []
    for percent in (10, 25, 50):
        text = (DATASETS / f"cifar10_{percent}.yaml").read_text()
        values = yaml.safe_load(text.replace("data/cifar10", str(tmp_path)))
        assert values["storage"]
        found = opened(tmp_path, **values)
        assert len(found.test) == len(truth["test"])
        assert np.bincount(found.train.labels).tolist() == [percent] * 3
        numbers = [number_of(np.asarray(found.train.image(one))) for one in range(3 * percent)]
        train.append(set(numbers))
    assert train[0] < train[1] < train[2]


def test_images_come_in_the_order_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sun397(tmp_path, monkeypatch)
    found = opened(tmp_path, **settings_of("sun397", tmp_path)).train
    names = [found.name(index) for index in range(len(found))]
    assert names == sorted(names)
    assert names[0].startswith(f"{tmp_path}/SUN397/a/abbey/sun_")


def test_a_class_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = caltech256(tmp_path, monkeypatch)["all"]
    values = settings_of("caltech256", tmp_path)
    found = opened(tmp_path, **values, leave_out=["002.american-flag"])
    assert found.classes == ["001.ak47", "003.backpack"]
    for images in (found.train, found.test):
        for index in range(len(images)):
            number = number_of(np.asarray(images.image(index)))
            assert truth[number] == found.classes[images.labels[index]]
    refused(
        tmp_path,
        r"no class '003.backpacks' \(did you mean '003.backpack'\?\)",
        **values,
        leave_out=["003.backpacks"],
    )


def test_parts_that_number_their_classes_differently_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet(tmp_path, monkeypatch)
    values = settings_of("imagenet", tmp_path)
    shutil.rmtree(tmp_path / "train" / "n02012849")
    shutil.rmtree(tmp_path / "val" / "n03126707")
    # Both have two classes, of which the second ones have one name.
    said = "label 1 .*ImageNet is 'n03126707' in part 'train' but 'n02012849' in part 'val'"
    refused(tmp_path, said, **values)
    shutil.rmtree(tmp_path / "val" / "n02012849")
    refused(tmp_path, "'n03126707' in part 'train' but 'no class' in part 'val'", **values)


def test_modes_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pets(tmp_path / "root", monkeypatch)
    first = sorted((tmp_path / "root").rglob("*.jpg"))[0]
    Image.new("L", (8, 8), 200).save(first)
    write_settings(tmp_path, "pets", **settings_of("pets", tmp_path / "root"))
    convert("pets", [tmp_path], tmp_path / "out")
    assert read_sidecar(tmp_path / "out" / "dataset.json").modes == {"L": 1, "RGB": 8}


def test_the_folder_that_caltech101_cannot_do_without_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caltech101(tmp_path, monkeypatch)
    values = settings_of("caltech101", tmp_path)
    background = tmp_path / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google"
    shutil.rmtree(background)
    refused(tmp_path, f"root: no folder {background}, which", **values)
    background.mkdir()
    assert opened(tmp_path, **values).classes == ["Faces", "accordion", "airplanes"]


def test_options_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aircraft(tmp_path, monkeypatch)
    data = tmp_path / "fgvc-aircraft-2013b" / "data"
    write_lines(data / "manufacturers.txt", ["Airbus", "Boeing", "Gulfstream"])
    makers = {"707-320": "Boeing", "A300B4": "Airbus", "Gulfstream IV": "Gulfstream"}
    for part in ("train", "val", "trainval", "test"):
        lines = (data / f"images_variant_{part}.txt").read_text()
        for variant, maker in makers.items():
            lines = lines.replace(variant, maker)
        (data / f"images_manufacturer_{part}.txt").write_text(lines)
    values = settings_of("aircraft", tmp_path)
    found = opened(tmp_path, **values, options={"annotation_level": "manufacturer"})
    assert found.classes == ["Airbus", "Boeing", "Gulfstream"]
    whole = opened(tmp_path, **{**values, "train_parts": ["val", "train"]})
    assert np.bincount(whole.train.labels).tolist() == [2, 2, 2]
    part = opened(tmp_path, **{**values, "train_parts": ["val"], "test_parts": ["train"]})
    assert (len(part.train), len(part.test)) == (3, 3)
    single = opened(tmp_path, **values, part="trainval", split={"train_per_class": 1})
    assert (len(single.train), len(single.test)) == (3, 3)
    refused(tmp_path, "takes no option 'level'", **values, options={"level": "family"})
    refused(tmp_path, "takes no option 'split'", **values, options={"split": "val"})
    refused(tmp_path, "cannot be opened so .*nothing", **{**values, "test_parts": ["nothing"]})


def test_options_that_change_the_labels_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets(tmp_path, monkeypatch)
    values = settings_of("pets", tmp_path)
    options = {"target_types": "binary-category"}
    found = opened(tmp_path, **values, options=options)
    assert found.classes == ["0", "1"]
    named = opened(tmp_path, **values, options=options, classes=["cat", "dog"])
    assert named.classes == ["cat", "dog"]
    assert np.bincount(named.test.labels).tolist() == [2, 1]


def test_what_is_not_there_is_not_downloaded_against_the_users_will(tmp_path: Path) -> None:
    for name in ("sun397", "imagenet", "stanford_cars"):
        values = settings_of(name, tmp_path / "nowhere")
        refused(tmp_path, "is not in .*nowhere and `download` is false", **values)
    refused(
        tmp_path,
        "has no part 'val'; choose 'train' or 'test'",
        **{**settings_of("cifar10", tmp_path), "train_parts": ["val"]},
    )
