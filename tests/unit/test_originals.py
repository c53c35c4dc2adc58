"""Originals that change after they were converted, and those that do not."""

import gzip
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import random_images, write_settings
from PIL import Image
from tests.conftest import CHECKOUT, recipe_values

from transfer_influence.config.dataset import (
    AS_CONVERTED,
    Dataset,
    conversion_settings,
    find_with_parts,
)
from transfer_influence.datasets import originals
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.originals import (
    NAME,
    Changes,
    Originals,
    find_changes,
    state_of_originals,
    write_originals,
)
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.errors import UserError
from transfer_influence.provenance import file_digest

SECOND = 10**9  # ns


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(path: str, red: int) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (red, 0, 99)).save(path)


def photos(root: str = "photos") -> dict[str, Any]:
    """Draw two classes of four images, and return settings that read them."""
    for label in "ab":
        for index in range(4):
            draw(f"{root}/{label}/{index}.bmp", 10 * index + ord(label))
    return {"kind": "folder", "train": root, "split": {"test_per_class": 1}}


def table() -> dict[str, Any]:
    photos("scans")
    rows = [f"{label}/{index}.bmp,{label}\n" for label in "ab" for index in range(3)]
    Path("scans/train.csv").write_text("path,label\n" + "".join(rows))  # not of all images
    split = {"test_per_class": 1}
    return {"kind": "table", "train": "scans/train.csv", "images": "scans", "split": split}


def arrays() -> dict[str, Any]:
    np.savez("cells.npz", images=random_images(8, 4, 4), labels=np.arange(8) % 2)
    return {"kind": "arrays", "source": "cells.npz", "split": {"test_per_class": 1}}


def torchvision_with_paths() -> dict[str, Any]:
    """Draw the images of a class that tells where they are."""
    for name in "ab":
        for index in range(3):
            draw(f"data/eurosat/2750/{name}/{index}.bmp", 10 * index)
    values = {"kind": "torchvision", "class_name": "EuroSAT", "root": "data", "download": False}
    return {**values, "split": {"test_per_class": 1}}


def torchvision_without_paths() -> dict[str, Any]:
    """Write the files of a class that does not tell where its images are."""
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = random_images(count, 28, 28)[..., 0]
        for kind, dimensions, values in (
            ("images", (count, 28, 28), pixels),
            ("labels", (count,), np.arange(count) % 10),
        ):
            path = Path(f"packed/{part}-{kind}-idx{len(dimensions)}-ubyte.gz")
            path.parent.mkdir(exist_ok=True)
            header = struct.pack(f">{1 + len(dimensions)}I", 0x800 + len(dimensions), *dimensions)
            path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
    draw("data/another/0.bmp", 1)  # `root` is shared
    values = {"kind": "torchvision", "class_name": "FashionMNIST", "root": "data"}
    return {**values, "unpack": "packed", "download": False}


def union() -> dict[str, Any]:
    write_settings(Path(), "pictures", **photos())
    write_settings(Path(), "clothes", **torchvision_without_paths())
    return {"kind": "union", "parts": ["pictures", "clothes"], "image_size": 6}


def converted(**values: Any) -> Originals:
    write_settings(Path(), "made", **values)
    convert("made", [Path()], Path("out"))
    return Originals.read(Path("out", NAME))


def changes(**options: Any) -> Changes:
    return find_changes(Originals.read(Path("out", NAME)), parts(), **options)


def parts() -> list[Dataset]:
    return [settings for settings, _ in find_with_parts("made", [Path()]).values()]


def state() -> tuple[str, str | None]:
    """Return what the workflow is told at its start."""
    settings = json.loads(conversion_settings("made", [Path()]))
    return state_of_originals(Path("out"), "made", [Path()], settings)


def touch(path: str) -> None:
    """Give a file a later time."""
    time = os.stat(path).st_mtime_ns + 5 * SECOND
    os.utime(path, ns=(time, time))


def overwrite(path: str) -> None:
    """Change the last byte of a file, and its time."""
    bytes_ = Path(path).read_bytes()
    Path(path).write_bytes(bytes_[:-1] + bytes([bytes_[-1] ^ 1]))
    touch(path)


# What is kept

PHOTOS = [f"photos/{label}/{index}.bmp" for label in "ab" for index in range(4)]
FASHION = [
    f"data/FashionMNIST/raw/{part}-{kind}-ubyte"
    for part in ("t10k", "train")
    for kind in ("images-idx3", "labels-idx1")
]
KINDS: dict[Callable[[], dict[str, Any]], list[str]] = {
    photos: PHOTOS,
    table: [
        *(f"scans/{label}/{index}.bmp" for label in "ab" for index in range(3)),
        "scans/train.csv",
    ],
    arrays: ["cells.npz"],
    torchvision_with_paths: [
        f"data/eurosat/2750/{name}/{index}.bmp" for name in "ab" for index in range(3)
    ],
    torchvision_without_paths: FASHION,
    union: [*FASHION, *PHOTOS],
}
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@each_kind
def test_the_files_of_each_kind_are_kept(kind: Callable[[], dict[str, Any]]) -> None:
    kept = converted(**kind())
    assert list(kept.paths) == KINDS[kind]
    for path, size, time, digest in zip(
        kept.paths, kept.sizes, kept.times, kept.digests, strict=True
    ):
        assert (size, time) == (os.stat(path).st_size, os.stat(path).st_mtime_ns)
        assert digest == file_digest(Path(path))
    assert changes(by_content=True) == Changes(looked_at=len(kept), total=len(kept))
    assert state() == (AS_CONVERTED, None)


@each_kind
def test_a_file_that_is_overwritten_is_noticed_in_each_kind(
    kind: Callable[[], dict[str, Any]],
) -> None:
    converted(**kind())
    path = KINDS[kind][0]
    overwrite(path)
    assert changes().changed == [path]
    assert state() == (f"1 file changed ({path})", None)
    convert("made", [Path()], Path("out"))
    assert state() == (AS_CONVERTED, None)


def test_the_table_of_originals_has_columns_for_everyone() -> None:
    converted(**photos())
    schema = pq.read_schema(Path("out", NAME))
    assert [f"{column.name}: {column.type}" for column in schema] == [
        *("path: string", "size: int64", "mtime_ns: int64", "digest: string"),
    ]


def test_a_data_set_that_ships_with_a_package_has_no_originals() -> None:
    kept = converted(
        kind="arrays", source="sklearn.digits", maximum=16, split={"test_per_class": 9}
    )
    assert len(kept) == 0
    assert state() == (AS_CONVERTED, None)


def test_all_other_files_of_a_folder_are_kept_too() -> None:
    values = photos()
    Path("photos/a/notes.txt").write_text("not an image")
    Path("photos/.hidden").write_text("")
    assert set(converted(**values).paths) == {"photos/.hidden", "photos/a/notes.txt", *PHOTOS}
    Path("photos/a/notes.txt").unlink()
    assert changes().went == ["photos/a/notes.txt"]


def test_in_the_working_folder_a_file_has_one_name() -> None:
    values = photos("inside/photos")
    write_settings(Path("settings"), "made", **values | {"train": "."})
    os.chdir("inside/photos")
    convert("made", [Path("../../settings")], Path("../../out"))
    kept = Originals.read(Path("../../out", NAME))
    assert list(kept.paths) == [path.removeprefix("photos/") for path in PHOTOS]
    settings = [one for one, _ in find_with_parts("made", [Path("../../settings")]).values()]
    assert not find_changes(kept, settings)


def test_absolute_paths_stay_absolute(tmp_path: Path) -> None:
    photos()
    values = {"kind": "folder", "train": str(tmp_path / "photos"), "split": {"test_per_class": 1}}
    assert list(converted(**values).paths) == [f"{tmp_path}/{path}" for path in PHOTOS]


def test_files_that_cannot_be_read_do_not_stop_a_conversion() -> None:
    values = photos() | {"split": {"test_per_class": 2}}
    Path("photos/a/gone.bmp").symlink_to("/absent")
    os.mkfifo("photos/a/pipe")
    for _ in range(2):
        kept = converted(**values, unreadable="skip")
        assert list(kept.paths) == PHOTOS
    assert read_sidecar(Path("out/dataset.json")).unreadable.names == ["photos/a/gone.bmp"]
    assert not changes()


def test_many_files_are_kept_in_order_by_several_threads() -> None:
    names = [f"{index:05d}" for index in range(2 * originals.BATCH + 1)]
    for name in names:
        Path(name).write_text(name)
    write_originals([*names, "absent"], Path("out", NAME), workers=3)
    kept = Originals.read(Path("out", NAME))
    assert list(kept.paths) == names
    assert kept.digests[-1] == file_digest(Path(names[-1]))


# What counts as a change


def test_a_file_that_is_only_touched_is_no_change() -> None:
    converted(**photos())
    touch(PHOTOS[3])
    assert changes() == Changes(touched=[PHOTOS[3]], looked_at=8, total=8)
    assert state() == (AS_CONVERTED, None)


def test_a_folder_that_is_copied_with_other_times_is_no_change() -> None:
    converted(**photos())
    shutil.copytree("photos", "copy", copy_function=shutil.copyfile)
    shutil.rmtree("photos")
    Path("copy").rename("photos")
    assert sorted(changes().touched) == PHOTOS
    assert state() == (AS_CONVERTED, None)


def test_another_size_is_a_change_even_with_the_same_time() -> None:
    converted(**photos())
    before = os.stat(PHOTOS[0])
    Path(PHOTOS[0]).write_bytes(Path(PHOTOS[0]).read_bytes() + b"more")
    os.utime(PHOTOS[0], ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert changes().changed == [PHOTOS[0]]


def test_the_same_size_and_time_are_seen_through_by_content_only() -> None:
    converted(**photos())
    before = os.stat(PHOTOS[0])
    overwrite(PHOTOS[0])
    os.utime(PHOTOS[0], ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert not changes()
    assert state() == (AS_CONVERTED, None)
    assert changes(by_content=True).changed == [PHOTOS[0]]


def test_files_that_come_and_go_are_named() -> None:
    converted(**photos())
    draw("photos/b/9.bmp", 1)
    Path(PHOTOS[1]).unlink()
    overwrite(PHOTOS[7])
    found = changes()
    assert (found.changed, found.came, found.went) == ([PHOTOS[7]], ["photos/b/9.bmp"], [PHOTOS[1]])
    sentence = (
        f"1 file changed ({PHOTOS[7]}), 1 file came (photos/b/9.bmp), 1 file went ({PHOTOS[1]})"
    )
    assert state() == (sentence, None)


def test_an_image_of_a_table_that_goes_is_named() -> None:
    converted(**table())
    Path("scans/a/0.bmp").unlink()
    assert state() == ("1 file went (scans/a/0.bmp)", None)
    draw("scans/a/9.bmp", 1)  # no table names it
    assert changes().came == []


def test_a_sentence_names_a_few() -> None:
    found = Changes(changed=list("abcd"), went=["e"], total=9, looked_at=9)
    assert found.sentence == "4 files changed (a, b, c, …), 1 file went (e)"
    assert found
    assert not Changes(touched=["a"], out_of_reach=3)


# What is out of reach


@each_kind
def test_archived_originals_are_no_change(kind: Callable[[], dict[str, Any]]) -> None:
    converted(**kind())
    settings = json.loads(conversion_settings("made", [Path()]))
    for folder in {path.partition("/")[0] for path in KINDS[kind]}:
        Path(folder).rename(f"archived-{folder}")
    said = state_of_originals(Path("out"), "made", [Path()], settings)
    assert said == (AS_CONVERTED, None)
    found = changes()
    assert found.out_of_reach == found.total == len(KINDS[kind])


def test_a_part_of_a_union_may_be_archived_alone() -> None:
    converted(**union())
    shutil.rmtree("data")
    assert state() == (AS_CONVERTED, None)
    overwrite(PHOTOS[0])
    Path(PHOTOS[1]).unlink()
    found = changes()
    assert (found.changed, found.went, found.out_of_reach) == ([PHOTOS[0]], [PHOTOS[1]], 4)


def test_a_folder_that_goes_from_among_others_is_a_change() -> None:
    converted(**photos())
    shutil.rmtree("photos/a")
    assert state() == (f"4 files went ({', '.join(sorted(changes().went)[:3])}, …)", None)


def test_before_a_conversion_nothing_has_changed() -> None:
    write_settings(Path(), "made", **photos())
    assert state() == (AS_CONVERTED, None)
    convert("made", [Path()], Path("out"))
    Path("out", NAME).unlink()
    assert state() == (AS_CONVERTED, None)


def test_a_damaged_table_of_originals_is_said() -> None:
    converted(**photos())
    Path("out", NAME).write_bytes(b"short")
    with pytest.raises(
        UserError, match=r"originals\.parquet: not readable .*; convert the data set"
    ):
        Originals.read(Path("out", NAME))
    said, warning = state()
    assert said == AS_CONVERTED
    assert warning is not None
    assert warning.endswith("convert the data set again. Until then, changes go unnoticed.")


# A quick look


def test_a_quick_look_that_has_no_time_takes_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    converted(**photos())
    found = changes(budget=0)
    assert (found.looked_at, found.total, found.is_sample) == (1, 8, True)
    monkeypatch.setattr(originals, "BUDGET", 0)
    said, warning = state()
    assert said == AS_CONVERTED
    assert warning is not None
    assert warning.startswith("data set made: 1 of 8 original files were looked at, and 0 with")


def test_a_quick_look_with_time_enough_looks_at_all() -> None:
    converted(**photos())
    overwrite(PHOTOS[5])
    found = changes(budget=3600)
    assert (found.looked_at, found.changed, found.is_sample) == (8, [PHOTOS[5]], False)


def test_each_day_has_another_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    converted(**photos())
    for path in PHOTOS:
        overwrite(path)
    looked_at = []
    for day in range(40):
        monkeypatch.setattr(originals, "today", lambda day=day: day)
        of_a_day = changes(budget=0).changed
        assert changes(budget=0).changed == of_a_day
        looked_at += of_a_day
    assert set(looked_at) == set(PHOTOS)


def test_touched_files_that_cannot_all_be_read_are_taken_for_the_same_and_told() -> None:
    kept = converted(**photos())
    for path in PHOTOS:
        touch(path)
    found = Changes(total=8, looked_at=8)
    originals._read(list(range(8)), kept, 0, False, found)
    assert (found.touched, found.unread) == ([PHOTOS[0]], PHOTOS[1:])
    assert found.sentence == AS_CONVERTED
    assert found.is_sample


# The command


def check(*options: str) -> subprocess.CompletedProcess[str]:
    recipe = recipe_values()
    study = {
        "study": "tiny",
        "models": 4,
        "source": {"dataset": "made", "recipe": recipe},
        "targets": {"made": {"modes": ["fixed"], "recipe": recipe}},
    }
    Path("tiny.yaml").write_text(yaml.safe_dump(study))
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / "check_originals.py"), "tiny.yaml", *options],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )


def studied(**values: Any) -> None:
    write_settings(Path("datasets"), "made", **values)
    convert("made", [Path("datasets")], Path("results/tiny/data/made"))


def test_the_command_says_that_nothing_has_changed() -> None:
    studied(**photos())
    touch(PHOTOS[0])
    run = check()
    assert run.stdout == f"made: 8 files, as converted\n  1 only touched: {PHOTOS[0]}\n"
    assert run.returncode == 0
    assert "8/8" in run.stderr
    run = check("--content")
    assert (run.stdout, run.returncode) == ("made: 8 files, as converted\n", 0)


def test_the_command_names_what_has_changed() -> None:
    studied(**photos())
    for path in PHOTOS[:2]:
        overwrite(path)
    Path(PHOTOS[2]).unlink()
    names = [f"photos/a/new{index:02d}.bmp" for index in range(22)]
    for name in names:
        draw(name, 1)
    run = check()
    assert run.stdout.splitlines() == [
        "made: 8 files, changed",
        f"  2 changed: {', '.join(PHOTOS[:2])}",
        f"  22 came: {', '.join(names[:20])} and 2 more",
        f"  1 went: {PHOTOS[2]}",
    ]
    assert run.returncode == 1


def test_by_content_the_command_sees_through_size_and_time() -> None:
    studied(**photos())
    before = os.stat(PHOTOS[0])
    overwrite(PHOTOS[0])
    os.utime(PHOTOS[0], ns=(before.st_mtime_ns, before.st_mtime_ns))
    assert check().returncode == 0
    run = check("--content")
    assert run.stdout == f"made: 8 files, changed\n  1 changed: {PHOTOS[0]}\n"
    assert run.returncode == 1


def test_the_command_says_what_it_cannot_know() -> None:
    write_settings(Path("datasets"), "made", **photos())
    run = check()
    assert (run.stdout, run.returncode) == ("made: not converted yet\n", 0)
    studied(**photos())
    shutil.rmtree("photos")
    run = check()
    assert run.stdout == (
        "made: 8 files, of which 8 cannot be reached; nothing is known to have changed\n"
    )
    assert run.returncode == 0
    Path("results/tiny/data/made", NAME).unlink()  # as converted by an older version
    run = check()
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith("convert the data set again.")
