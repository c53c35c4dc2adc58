import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import CHECKOUT, CLASSES, recipe_values

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import Subset
from transfer_influence.datasets import staging
from transfer_influence.datasets.sidecar import FORMAT
from transfer_influence.datasets.staging import staged
from transfer_influence.job import JobOptions
from transfer_influence.provenance import Origin
from transfer_influence.subsets import source_models
from transfer_influence.training import trainer
from transfer_influence.training.sources import train_sources

DEADLINE = 20  # seconds until a test gives up waiting

USER = """
import functools, logging, os, shutil, sys, time
from pathlib import Path
from transfer_influence.datasets import staging

data, scratch, manner = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
logging.basicConfig(level=logging.INFO, format="%(message)s")
staging.MARGIN = 0

def copy(source, goal):
    if goal.endswith("train.beton"):
        while Path(scratch, "wait").exists():
            time.sleep(0.01)
    shutil.copy2(source, goal)

def remove(folder, **_):
    if folder.exists():
        (folder / "train.beton").unlink()
        while Path(scratch, "wait").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 9)

if manner == "copies slowly":
    staging.shutil.copytree = functools.partial(shutil.copytree, copy_function=copy)
if manner == "dies when it removes":
    staging.shutil.rmtree = remove
with staging.staged(data, scratch) as folder:
    print(folder, flush=True)
    sys.stdin.readline()
"""


class User:
    """A process that reads a data set."""

    def __init__(self, data: Path, scratch: Path, manner: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(data), str(scratch), manner],
            env={"PYTHONPATH": str(CHECKOUT / "workflow"), "PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def folder(self) -> Path:
        """Where it reads; waits until it does."""
        return Path(self.process.stdout.readline().strip())

    def leave(self) -> str:
        """Let it end; return its log."""
        return self.process.communicate("\n", timeout=DEADLINE)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Users:
    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._started: list[User] = []

    def start(self, data: Path, manner: str = "") -> User:
        self._started.append(User(data, self._scratch, manner))
        return self._started[-1]

    def kill(self) -> None:
        for user in self._started:
            user.kill()


@pytest.fixture
def scratch(tmp_path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


@pytest.fixture
def users(scratch) -> Iterator[Users]:
    started = Users(scratch)
    yield started
    started.kill()


@pytest.fixture(autouse=True)
def room(monkeypatch) -> None:
    monkeypatch.setattr(staging, "MARGIN", 0)


@pytest.fixture
def data(tmp_path) -> Path:
    return make_data(tmp_path, "flowers")


def make_data(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    sidecar = {
        "format": FORMAT,
        "ffcv": "1.0.2",
        "name": name,
        "classes": ["a", "b"],
        **{f"{split}_count": 2 for split in ("train", "test")},
        **{f"{split}_class_counts": [1, 1] for split in ("train", "test")},
        **{key: [0.5, 0.5, 0.5] for key in ("mean", "std")},
        **{key: [8, 8] for key in ("image_size", "largest_size")},
        "digest": (name * 64)[:64],
        "storage": {},
        "licence": "",
        "citation": "",
    }
    (path / "dataset.json").write_text(json.dumps(sidecar))
    (path / "train.beton").write_bytes(random.Random(name).randbytes(100_000))
    (path / "test.beton").write_bytes(b"test of " + name.encode())
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def home(scratch: Path) -> Path:
    return scratch / f"transfer-influence-{os.getuid()}"


def remains(scratch: Path) -> list[str]:
    """Return what is on the disk, but for the folder that copies lie in."""
    return [path for path in everything(scratch) if path != home(scratch).name]


def test_without_scratch_the_data_set_itself_is_read(data):
    with staged(data, None) as folder:
        assert folder == data


def test_a_copy_is_read_and_removed(data, scratch):
    with staged(data, str(scratch)) as folder:
        assert folder == home(scratch) / "flowers-flowersflowersfl"
        assert contents(folder) == contents(data)
        assert everything(home(scratch)) == sorted(
            [folder.name, *(f"{folder.name}/{name}" for name in contents(data))]
        )
    assert remains(scratch) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_copy_is_removed_when_its_user_fails(data, scratch, error):
    with pytest.raises(error), staged(data, str(scratch)):
        raise error
    assert remains(scratch) == []


def test_users_share_one_copy_at_a_time_and_the_last_removes_it(users, data, scratch):
    started = [users.start(data) for _ in range(4)]
    folders = [user.folder() for user in started]  # all of them read at once
    assert folders == [home(scratch) / "flowers-flowersflowersfl"] * 4
    logs = []
    for user in started:
        assert contents(folders[0]) == contents(data)
        logs.append(user.leave())
    assert "".join(logs).count(" copied in ") == 1
    assert remains(scratch) == []


def test_one_who_comes_while_it_is_copied_waits_for_all_of_it(users, data, scratch):
    (scratch / "wait").touch()
    first = users.start(data, "copies slowly")
    started = time.monotonic()
    while not list(home(scratch).glob(".flowers-*")):
        assert time.monotonic() - started < DEADLINE
        time.sleep(0.01)
    second = users.start(data)
    time.sleep(0.7)
    assert everything(home(scratch))[-1].endswith(".lock"), "a copy, though it is not whole"
    (scratch / "wait").unlink()
    assert first.folder() == second.folder() == home(scratch) / "flowers-flowersflowersfl"
    assert contents(home(scratch) / "flowers-flowersflowersfl") == contents(data)
    assert " copied in " in first.leave()
    assert second.leave() == ""


def test_a_copy_that_is_used_survives_those_who_come_and_go(users, data, tmp_path, scratch):
    user = users.start(data)
    folder = user.folder()
    other = make_data(tmp_path, "other")
    for visited in (data, other):
        with staged(visited, str(scratch)) as copy:
            assert contents(copy) == contents(visited)
            assert contents(folder) == contents(data)
        assert [path.name for path in home(scratch).iterdir()] == [folder.name]
    user.leave()
    assert remains(scratch) == []


@pytest.mark.parametrize("next_name", ["flowers", "other"])
def test_the_copy_of_a_killed_user_is_removed_by_the_next(
    users, data, tmp_path, scratch, caplog, next_name
):
    killed = users.start(data)
    left = killed.folder()
    killed.kill()
    (left / "train.beton").write_bytes(b"who knows")
    following = data if next_name == "flowers" else make_data(tmp_path, "other")
    with caplog.at_level("INFO"), staged(following, str(scratch)) as folder:
        assert contents(folder) == contents(following)
        assert [path.name for path in home(scratch).iterdir()] == [folder.name]
    assert " copied in " in caplog.text
    assert remains(scratch) == []


def test_what_a_user_killed_while_copying_leaves_is_never_read(users, data, scratch):
    (scratch / "wait").touch()
    killed = users.start(data, "copies slowly")
    started = time.monotonic()
    while not list(home(scratch).glob(".flowers-*/test.beton")):
        assert time.monotonic() - started < DEADLINE
        time.sleep(0.01)
    killed.kill()
    with staged(data, str(scratch)) as folder:
        assert folder != data
        assert contents(folder) == contents(data)
    assert remains(scratch) == ["wait"]


def test_what_a_user_killed_while_removing_leaves_is_never_read(users, data, scratch):
    killed = users.start(data, "dies when it removes")
    assert killed.folder() != data
    (scratch / "wait").touch()
    killed.process.stdin.write("\n")
    killed.process.stdin.flush()
    started = time.monotonic()
    while list(home(scratch).rglob("train.beton")):
        assert time.monotonic() - started < DEADLINE
        time.sleep(0.01)
    waiting = users.start(data)
    time.sleep(0.7)
    assert list(home(scratch).rglob("test.beton")), "it is no longer being removed"
    (scratch / "wait").unlink()
    assert contents(waiting.folder()) == contents(data)
    assert killed.process.wait(DEADLINE) == -9
    waiting.leave()
    assert remains(scratch) == []


def test_users_who_come_and_go_in_any_order_read_whole_copies_and_leave_none(data, scratch):
    wrong, whole = [], contents(data)

    def come_and_go(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            with staged(data, str(scratch)) as folder:
                if folder == data or contents(folder) != whole:
                    wrong.append(folder)
                time.sleep(rng.random() / 500)

    threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert remains(scratch) == []


def reads_itself(data: Path, scratch: str, caplog: pytest.LogCaptureFixture) -> str:
    """Check that the data set itself is read; return why, from the log."""
    with staged(data, scratch) as folder:
        assert folder == data
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert message.startswith("scratch: ")
    assert message.endswith(f"; reading {data} itself")
    return message


def test_too_little_room_costs_only_speed(data, scratch, caplog, monkeypatch):
    usage = namedtuple("usage", "free")
    size = sum(path.stat().st_size for path in data.iterdir())
    monkeypatch.setattr(staging, "MARGIN", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size + 999))
    assert "0.0 GB are free, and the copy of" in reads_itself(data, str(scratch), caplog)
    assert remains(scratch) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(size + 1000))
    with staged(data, str(scratch)) as folder:
        assert folder != data


def test_a_small_disk_costs_only_speed(data, tiny_disk, caplog):
    assert "GB are free" in reads_itself(data, str(tiny_disk), caplog)
    assert remains(tiny_disk) == []


def test_a_disk_that_fills_up_meanwhile_costs_only_speed(data, tiny_disk, caplog, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40))
    assert "No space left on device" in reads_itself(data, str(tiny_disk), caplog)
    assert remains(tiny_disk) == []


def test_a_folder_that_cannot_be_written_costs_only_speed(data, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert "Not a directory" in reads_itself(data, str(tmp_path / "file" / "deep"), caplog)


def test_environment_variables_are_filled_in(data, scratch, monkeypatch):
    monkeypatch.setenv("DISK_OF_THIS_NODE", str(scratch))
    with staged(data, "$DISK_OF_THIS_NODE/deep") as folder:
        assert folder.parent == home(scratch / "deep")
        assert contents(folder) == contents(data)


def test_an_environment_variable_that_is_not_set_is_named(data, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    found = reads_itself(data, "$DISK_OF_NO_NODE/deep", caplog)
    assert "$DISK_OF_NO_NODE/deep: names an environment variable that is not set" in found
    assert everything(tmp_path) == before


def test_models_trained_from_a_copy_are_the_same(planted, tmp_path, scratch, monkeypatch):
    stage = SourceStage(
        seed=0,
        subset=Subset(fraction=0.5),
        architecture=Architecture(width=4),
        recipe=Recipe(**recipe_values(epochs=1)),
    )
    read = []
    open_loader = trainer.open_loader
    monkeypatch.setattr(trainer, "open_loader", lambda *a: read.append(a[0]) or open_loader(*a))
    found = []
    for disk in (None, str(scratch)):
        folder = tmp_path / f"from {disk is None}"
        train_sources(
            source_models(stage, [0, 1], list(map(str, range(CLASSES)))),
            stage,
            planted,
            folder / "shard.safetensors",
            folder / "shard.parquet",
            Origin({}, {}, "aa"),
            JobOptions(gpus=0, processes=1, workers=1, scratch=disk, failed_models="stop"),
        )
        found.append((folder / "shard.safetensors").read_bytes())
    assert found[0] == found[1]
    assert read[:2] == [planted, planted]
    assert [folder.parent for folder in read[2:]] == [home(scratch)] * 2
    assert remains(scratch) == []
