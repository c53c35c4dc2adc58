"""Tables of paths and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import opened, refused
from PIL import Image

from transfer_influence.config.dataset import DatasetFile
from transfer_influence.config.settings import check
from transfer_influence.errors import UserError

NAMES = [f"{index}.png" for index in range(8)]
ANIMALS = ["cat", "NA", "cat", "NA", "dog", "dog", "cat", "NA"]
FINDINGS = ["No Finding", "Hernia|Mass", "Mass", "Mass | Hernia", "Hernia", "Hernias", "", "Mass"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of grey images, each as bright as its number."""
    (tmp_path / "images").mkdir()
    for index, name in enumerate(NAMES):
        Image.new("L", (3, 3), index).save(tmp_path / "images" / name)
    return tmp_path


def table(folder: Path, name: str = "all.csv", **columns: Any) -> dict[str, Any]:
    """Write a table and return the settings to read it."""
    columns = {"path": NAMES, **columns}
    rows = pd.DataFrame({key.replace("_", " "): value for key, value in columns.items()})
    if name.endswith(".parquet"):
        rows.to_parquet(folder / name)
    else:
        rows.to_csv(folder / name, index=False, sep="\t" if name.endswith(".tsv") else ",")
    return {"kind": "table", "train": str(folder / name), "images": str(folder / "images")}


def numbers(images: Any) -> list[int]:
    return [images.image(index).getpixel((0, 0))[0] for index in range(len(images))]


@pytest.mark.parametrize("name", ["all.csv", "all.tsv", "all.parquet"])
def test_class_names(folder: Path, name: str) -> None:
    values = table(folder, name, label=ANIMALS)
    split = {"test_per_class": 1}
    found = opened(folder, **values, split=split)
    assert found.classes == ["NA", "cat", "dog"]
    for images in (found.train, found.test):
        for number, label in zip(numbers(images), images.labels, strict=True):
            assert found.classes[label] == ANIMALS[number]
    ordered = opened(folder, **values, split={"test_per_class": 1}, classes=["dog", "cat", "NA"])
    assert ordered.classes == ["dog", "cat", "NA"]
    assert [ordered.classes[label] for label in ordered.train.labels] == [
        ANIMALS[number] for number in numbers(ordered.train)
    ]
    without = opened(folder, **values, leave_out=["dog"], classes=["cat", "NA"], split=split)
    assert without.classes == ["cat", "NA"]
    assert set(numbers(without.train) + numbers(without.test)) == {0, 1, 2, 3, 6, 7}
    assert without.train.labels.tolist() == [
        without.classes.index(ANIMALS[number]) for number in numbers(without.train)
    ]
    refused(folder, r"'dog' \(2 images\) is not one of `classes`", **values, classes=["cat", "NA"])


@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
@pytest.mark.parametrize("kind", [int, float])
def test_whole_numbers(folder: Path, name: str, kind: type) -> None:
    labels = [0, 1, 2, 4, 2, 1, 0, 4]
    values = table(folder, name, label=[kind(label) for label in labels])
    refused(folder, "class '3' has no images", **values)
    labels = [label % 4 for label in labels]
    values = table(folder, name, label=[kind(label) for label in labels])
    found = opened(folder, **values, split={"train_per_class": 1}, classes=["a", "b", "c"])
    assert found.classes == ["a", "b", "c"]
    assert found.train.labels.tolist() == [labels[number] for number in numbers(found.train)]
    without = opened(
        folder, **values, split={"train_per_class": 1}, classes=["a", "c"], leave_out=["1"]
    )
    assert without.classes == ["a", "c"]
    assert {labels[number] for number in numbers(without.train)} == {0, 2}


def test_a_second_table_is_the_test_part(folder: Path) -> None:
    table(folder, "test.csv", path=NAMES[4:], label=["b", "a", "b", "a"])
    values = table(folder, path=NAMES[:4], label=["a", "a", "b", "b"])
    found = opened(folder, **values, test=str(folder / "test.csv"))
    assert (numbers(found.train), numbers(found.test)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 0, 1, 1], [1, 0, 1, 0])
    # Classes are those of both tables together.
    table(folder, "test.csv", path=NAMES[4:], label=["b", "c", "b", "a"])
    refused(folder, "class 'c' has no images", **values, test=str(folder / "test.csv"))


def test_a_column_names_the_parts(folder: Path) -> None:
    parts = ["train", "train", "val", "val", "test", "test", "none", "none"]
    values = table(folder, label=[0, 1] * 4, which=parts) | {"part_column": "which"}
    found = opened(folder, **values)
    assert (numbers(found.train), numbers(found.test)) == ([0, 1], [4, 5])
    found = opened(folder, **values, train_parts=["train", "val"])
    assert numbers(found.train) == [0, 1, 2, 3]
    refused(folder, "test part: a part of the data set holds no", **values, test_parts=["x"])


def test_rows_in_neither_part_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = ["train ", "train", "train", " train", "test", "test", "test\t", "test"]
    values = table(folder, label=[0, 1] * 4, which=parts) | {"part_column": "which"}
    found = opened(folder, **values)
    assert (numbers(found.train), numbers(found.test)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert caplog.messages == []
    parts[2:4] = ["Train", "val"]
    table(folder, label=[0, 1] * 4, which=parts)
    found = opened(folder, **values)
    assert (numbers(found.train), numbers(found.test)) == ([0, 1], [4, 5, 6, 7])
    (said,) = caplog.messages
    assert said.endswith("all.csv: 2 of 8 rows are in neither part and left out, such as 'Train'")


def test_lists_name_the_parts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "train.txt").write_text("3.png\n1.png\n\n0.png\n2.png\n")
    (folder / "test.txt").write_text("6.png\r\n7.png")
    lists = {f"{part}_list": str(folder / f"{part}.txt") for part in ("train", "test")}
    values = table(folder, label=[0, 1] * 4)
    found = opened(folder, **values, **lists)
    assert (numbers(found.train), numbers(found.test)) == ([0, 1, 2, 3], [6, 7])
    assert "2 of 8 rows are in neither part and left out, such as '4.png'" in caplog.text
    (folder / "test.txt").write_text("3.png\n7.png\n")
    refused(folder, r"3\.png stands in both .*train\.txt and .*test\.txt", **values, **lists)
    (folder / "test.txt").write_text("8.png\n9.png\n7.png\n")
    refused(folder, r"names 8\.png and 1 more that are not in the table", **values, **lists)


def test_one_label_of_cells_that_hold_several(folder: Path) -> None:
    values = table(folder, Finding_Labels=FINDINGS) | {"label_column": "Finding Labels"}
    split = {"test_per_class": 1}
    found = opened(folder, **values, delimiter="|", positive="Hernia", split=split)
    assert found.classes == ["no Hernia", "Hernia"]
    seen = dict(zip(numbers(found.train), found.train.labels.tolist(), strict=True))
    seen |= dict(zip(numbers(found.test), found.test.labels.tolist(), strict=True))
    assert [seen[number] for number in range(8)] == [0, 1, 0, 1, 1, 0, 0, 0]
    refused(
        folder,
        "positive: no image has the label 'Hernai'; use one of 'Hernia', 'Hernias', '.*Mass'",
        **values,
        delimiter="|",
        positive="Hernai",
        split=split,
    )
    # Without a delimiter, the whole cell is the label.
    labels = [finding or "none" for finding in FINDINGS]
    values = table(folder, Finding_Labels=labels) | {"label_column": "Finding Labels"}
    found = opened(folder, **values, positive="Mass", split=split)
    assert found.train.labels.sum() + found.test.labels.sum() == 2


@pytest.mark.parametrize("kind", [int, float, bool])
@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_one_label_in_a_column_of_its_own(folder: Path, name: str, kind: type) -> None:
    values = table(folder, name, Hernia=[kind(index % 3 == 0) for index in range(8)])
    found = opened(folder, **values, positive="Hernia", split={"test_per_class": 1})
    assert found.classes == ["no Hernia", "Hernia"]
    expected = [int(number % 3 == 0) for number in numbers(found.train)]
    assert found.train.labels.tolist() == expected
    values = table(folder, name, Hernia=[str(index) for index in range(8)])
    refused(folder, "column 'Hernia' holds '2'; give 0 or 1", **values, positive="Hernia")


def test_paths_in_several_folders(folder: Path) -> None:
    for index, name in enumerate(NAMES):
        place = folder / f"part_{index % 3}" / "images" / "deep"
        place.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).rename(place / name)
    values = table(folder, path=[f"deep/{name}" for name in NAMES], label=[0, 1] * 4)
    values["images"] = str(folder / "part_*" / "images")
    found = opened(folder, **values, split={"test_per_class": 1})
    assert sorted(numbers(found.train) + numbers(found.test)) == list(range(8))
    (folder / "part_1" / "images" / "deep" / "4.png").unlink()
    found = opened(folder, **values, split={"test_per_class": 1})
    with pytest.raises(UserError, match=r"part_0/images/deep/4\.png: not readable"):
        numbers(found.train), numbers(found.test)
    refused(folder, "no folder fits", **{**values, "images": str(folder / "nothing_*")})


def test_table_mistakes(folder: Path) -> None:
    good = table(folder, label=[0, 1] * 4)
    refused(folder, "no file .*absent.csv", **{**good, "train": str(folder / "absent.csv")})
    refused(folder, r"all\.txt is no table", **{**good, "train": str(folder / "all.txt")})
    (folder / "bad.parquet").write_text("no")
    refused(folder, "cannot be read as a table", **{**good, "train": str(folder / "bad.parquet")})
    refused(folder, "no column 'x'; use one of 'path', 'label'", **good, path_column="x")
    refused(folder, "label_column: .* no column 'x'", **good, label_column="x")
    refused(folder, "positive: .* no column 'x'", **good, positive="x")
    refused(folder, "part_column: .* no column 'x'", **good, part_column="x")
    refused(folder, "the data has no test part", **good)
    refused(folder, "train_list: no file absent", **good, train_list="absent", test_list="absent")
    for name in ("empty.csv", "empty.parquet"):
        values = table(folder, name, label=["a", "b", None, "a", "b", "a", "b", "a"])
        refused(folder, r"column 'label' is empty for 2\.png; fill it in", **values)
    negative = table(folder, label=[0, -1, 1, 2] * 2)
    refused(folder, r"1\.png has label -1", **negative)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train_list": "a"}, "give both `train_list` and `test_list`, or neither"),
        ({"test": "a", "part_column": "b"}, "`test` and `part_column` both say which images"),
        ({"delimiter": "|"}, "`delimiter` needs `label_column` and `positive`; give both"),
        ({"delimiter": "|", "positive": "x"}, "`delimiter` needs `label_column` and `positive`"),
    ],
)
def test_keys_that_do_not_go_together(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError) as mistake:
        check(DatasetFile, {"kind": "table", "train": "t.csv", **changes}, "a.yaml")
    assert sentence in str(mistake.value)


def test_labels_are_whole_numbers_of_64_bits(folder: Path) -> None:
    found = opened(folder, **table(folder, label=[0, 1] * 4), split={"test_per_class": 1})
    assert found.train.labels.dtype == np.int64
