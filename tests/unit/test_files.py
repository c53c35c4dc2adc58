import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from transfer_influence.errors import UserError
from transfer_influence.files import LITTER_AGE, atomic
from transfer_influence.outcomes.tables import write_table


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_file_appears_under_its_name(tmp_path):
    path = tmp_path / "deep" / "er" / "table.parquet"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".parquet"
        assert temporary.name.startswith(".")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(path.parent) == ["table.parquet"]


def fail_half_way(path, error: type[BaseException]) -> None:
    with atomic(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fail_half_way(tmp_path / "table.parquet", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_inside_leaves_the_earlier_file_as_it_was(tmp_path, error):
    path = tmp_path / "table.parquet"
    path.write_text("earlier")
    with pytest.raises(error):
        fail_half_way(path, error)
    assert path.read_text() == "earlier"
    assert names(tmp_path) == ["table.parquet"]


def test_a_finished_file_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_text("earlier")
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "earlier"
    assert path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path):
    path = tmp_path / "table.parquet"
    with atomic(path) as one, atomic(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the outer block ends last
    assert names(tmp_path) == ["table.parquet"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "table.parquet"):
        pass
    assert names(tmp_path) == []


# Litter


def test_old_temporary_files_of_killed_writers_are_removed(tmp_path):
    path = tmp_path / "table.parquet"
    ages = {".table.00000000.parquet": LITTER_AGE + 60, ".table.11111111.parquet": LITTER_AGE - 60}
    others = [".tables.00000000.parquet", ".table.00000000.safetensors", ".table.0.parquet"]
    for name, age in (ages | dict.fromkeys(others, LITTER_AGE + 60)).items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with atomic(path) as temporary:
        temporary.touch()
    assert names(tmp_path) == sorted([".table.11111111.parquet", *others, "table.parquet"])


# A full disk


def write_text(path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text("word " * 100_000)


def write_parquet(path: Path) -> None:
    noise = np.random.default_rng(0).random(100_000)
    write_table(pa.table({"outcome": noise}), path, "{}")


def write_parquet_in_groups(path: Path) -> None:
    noise = pa.table({"outcome": np.random.default_rng(0).random(100_000)})
    with atomic(path) as temporary:
        writer = pq.ParquetWriter(temporary, noise.schema)
        for _ in range(10):
            writer.write_table(noise)


def write_weights(path: Path) -> None:
    with atomic(path) as temporary:
        save_file({"w": torch.zeros(100_000)}, temporary)


WRITERS = [
    (write_text, "log.txt"),
    (write_parquet, "table.parquet"),
    (write_parquet_in_groups, "table.parquet"),
    (write_weights, "weights.safetensors"),
]


@pytest.mark.parametrize(
    ("write", "name"), WRITERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tiny_disk, write: Callable[[Path], None], name
):
    with pytest.raises(UserError) as mistake:
        write(tiny_disk / name)
    expected = f"{tiny_disk / name}: no space left on device; make room and run again."
    assert str(mistake.value) == expected
    assert names(tiny_disk) == []


def test_a_full_disk_keeps_the_earlier_file(tiny_disk):
    (tiny_disk / "log.txt").write_text("earlier")
    with pytest.raises(UserError):
        write_text(tiny_disk / "log.txt")
    assert (tiny_disk / "log.txt").read_text() == "earlier"
    assert names(tiny_disk) == ["log.txt"]


def test_a_full_quota_is_said_the_same_way(tmp_path):
    with (
        pytest.raises(UserError, match=r"a.txt: disk quota exceeded; make room"),
        atomic(tmp_path / "a.txt"),
    ):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def test_another_error_of_the_system_stays_as_it_is(tmp_path):
    with pytest.raises(PermissionError), atomic(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_the_innermost_file_is_the_one_that_is_named(tmp_path):
    with (
        pytest.raises(UserError, match=r"inner.txt: no space"),
        atomic(tmp_path / "outer.txt"),
        atomic(tmp_path / "inner.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
