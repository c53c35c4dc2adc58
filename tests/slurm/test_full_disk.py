"""A disk that fills up while outcomes are written."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.slurm.conftest import SHARDS, ClusterProject, assert_same_results

SIZE = 32 * 2**20  # bytes; the converted data set takes a third of it
ROOM = 64 * 2**10  # bytes left: for one model of 26 kB and its row, not for three


pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def small_disk(converted) -> Iterator[ClusterProject]:
    """The study with its results on a small disk of their own, all but full."""
    results = converted.results
    data = shutil.copytree(results / "data", converted.folder / "data")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(results)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("a container that may not mount anything has no small disk")
    try:
        shutil.copytree(data, results / "data")
        free = shutil.disk_usage(results).free
        (results / "filler").write_bytes(bytes(free - ROOM))
        yield converted
    finally:
        converted.close()
        subprocess.run(["umount", results], check=True)


def whole(path: Path) -> bool:
    """Tell whether a result file can be read to its end."""
    if path.suffix == ".parquet":
        return pq.read_table(path).num_rows > 0
    return bool(load_file(path))


def test_a_full_disk_is_said_and_leaves_nothing_truncated(small_disk, undisturbed):
    shard = SHARDS[0]
    full = small_disk.start("--retries", "0", *small_disk.sources(shard))
    assert full.wait(300) == 1
    assert "no space left on device; make room and run again." in full.output
    sources = small_disk.results / "sources"
    assert not (sources / f"{shard}.parquet").exists()
    assert not (sources / f"{shard}.safetensors").exists()
    left = [*sources.rglob("*.parquet"), *sources.rglob("*.safetensors")]
    assert all(whole(path) for path in left)

    (small_disk.results / "filler").unlink()
    again = small_disk.start(*small_disk.sources(shard))
    assert again.wait(300) == 0, again.output
    assert_same_results(small_disk, undisturbed, shard)
