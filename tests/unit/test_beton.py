import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, random_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from transfer_influence.config.dataset import Storage
from transfer_influence.datasets import beton
from transfer_influence.datasets.beton import BetonStream, decode_all, write_beton
from transfer_influence.datasets.images import Images
from transfer_influence.errors import UserError


def as_images(pixels: list[np.ndarray] | np.ndarray) -> Images:
    return Images(
        np.arange(len(pixels), dtype=np.int64) % 3,
        lambda index: Image.fromarray(pixels[index]),
        lambda index: f"image {index}",
    )


def smooth_images(count: int, height: int, width: int) -> np.ndarray:
    """Images that JPEG can hold well."""
    rows = np.linspace(0, 150, height)[:, None, None]
    columns = np.linspace(0, 50, width)[None, :, None]
    return np.stack([rows + columns + [0, shade, 0] for shade in range(count)]).astype(np.uint8)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_raw_images_come_back_exactly(
    tmp_path: Path, count: int, height: int, width: int, seed: int
) -> None:
    pixels = random_images(count, height, width, seed)
    contents = write_beton(tmp_path / "a.beton", as_images(pixels), Storage())
    assert np.array_equal(decode_all(tmp_path / "a.beton"), pixels)
    assert contents.sizes.tolist() == [[height, width]] * count
    assert contents.histogram.sum(axis=1).tolist() == [count * height * width] * 3


@pytest.mark.parametrize("workers", [1, 64])
def test_jpeg_images_come_back_nearly(tmp_path: Path, workers: int) -> None:
    pixels = smooth_images(20, 40, 56)
    write_beton(tmp_path / "a.beton", as_images(pixels), Storage(mode="jpg", quality=95))
    decoded = decode_all(tmp_path / "a.beton", workers)
    difference = np.abs(decoded.astype(int) - pixels)
    assert 0 < difference.max() <= 8
    assert difference.mean() < 2


@pytest.mark.parametrize(
    "storage",
    [Storage(), Storage(mode="jpg"), Storage(mode="proportion"), Storage(mode="smart")],
    ids=lambda storage: storage.mode,
)
def test_same_images_same_bytes(tmp_path: Path, storage: Storage) -> None:
    images = as_images(random_images(30, 24, 32))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = write_beton(tmp_path / "a.beton", images, storage)
    np.random.random()  # noqa: NPY002
    second = write_beton(tmp_path / "b.beton", images, storage)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert first.digest == second.digest
    np.random.set_state(("MT19937", before, 624, 0, 0.0))  # noqa: NPY002


def test_threads_that_read_ahead_change_no_byte(tmp_path: Path) -> None:
    images = as_images(random_images(30, 24, 32))
    readers = set()

    def slow_at_first(index: int) -> Image.Image:
        readers.add(threading.current_thread())
        time.sleep(0.02 if index < 3 else 0)  # so that later images are read before
        if index == 7:
            raise OSError("damaged")
        return images.load(index)

    written = []
    for workers in (1, 4):
        path = tmp_path / f"{workers}.beton"
        read = Images(images.labels, slow_at_first, images.name)
        contents = write_beton(path, read, Storage(), skip_unreadable=True, workers=workers)
        written.append((path.read_bytes(), contents.pixel_digests, contents.histogram.tolist()))
        assert contents.unreadable == [images.name(7)]
    assert written[0] == written[1]
    assert len(readers) == 1 + 4
    alive = threading.active_count()
    with pytest.raises(UserError, match="damaged"):
        write_beton(path, read, Storage(), workers=4)
    assert threading.active_count() == alive


def test_the_digest_sees_pixels_labels_and_order(tmp_path: Path) -> None:
    pixels = random_images(4, 8, 8)
    images = as_images(pixels)
    changed = pixels.copy()
    changed[3, 7, 7, 2] ^= 1
    relabelled = Images(images.labels[::-1].copy(), images.load, images.name)
    variants = [images, as_images(changed), relabelled, images.take(np.array([1, 0, 2, 3]))]
    digests = {write_beton(tmp_path / "a.beton", one, Storage()).digest for one in variants}
    assert len(digests) == 4


def test_smart_storage_keeps_small_images_raw(tmp_path: Path) -> None:
    pixels = [random_images(1, 8, 8)[0], random_images(1, 100, 100)[0]]
    write_beton(tmp_path / "a.beton", as_images(pixels), Storage(mode="smart", smart_threshold=999))
    modes = beton.Reader(str(tmp_path / "a.beton")).metadata["f0"]["mode"]
    assert modes.tolist() == [beton.IMAGE_MODES["raw"], beton.IMAGE_MODES["jpg"]]


def test_large_images_are_shrunk_to_max_resolution(tmp_path: Path) -> None:
    pixels = [random_images(1, 30, 60)[0], random_images(1, 10, 20)[0]]
    contents = write_beton(tmp_path / "a.beton", as_images(pixels), Storage(max_resolution=40))
    assert contents.sizes.tolist() == [[20, 40], [10, 20]]


def test_images_larger_than_a_page(tmp_path: Path) -> None:
    small, large = random_images(1, 900, 1200)[0], random_images(1, 1200, 900, seed=1)[0]
    write_beton(tmp_path / "a.beton", as_images([small, large]), Storage())
    reader = beton.Reader(str(tmp_path / "a.beton"))
    assert reader.page_size == 8 * 2**20  # twice the 3.1 MiB of an image, to a power of two
    stored = np.fromfile(tmp_path / "a.beton", np.uint8)
    for pixels, start in zip((small, large), reader.metadata["f0"]["data_ptr"], strict=True):
        assert np.array_equal(stored[start : start + pixels.size], pixels.ravel())


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_eight_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(smooth_images(1, 9, 9)[0]).convert(mode)
    images = Images(np.zeros(1, np.int64), lambda _: image, str)
    write_beton(tmp_path / "a.beton", images, Storage())
    assert np.array_equal(decode_all(tmp_path / "a.beton")[0], np.asarray(image.convert("RGB")))


def failing_image(pixels: np.ndarray, at: int, fail: Callable[[], Image.Image]) -> Images:
    images = as_images(pixels)
    return Images(
        images.labels,
        lambda index: fail() if index == at else images.load(index),
        lambda index: f"image {index}",
    )


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    Image.fromarray(random_images(1, 64, 64)[0]).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    images = failing_image(random_images(150, 4, 4), 120, lambda: Image.open(tmp_path / "half.jpg"))
    with pytest.raises(UserError, match=r"image 120: not readable as an image .*truncated"):
        write_beton(tmp_path / "a.beton", images, Storage())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.jpg", "whole.jpg"]


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 40_000, np.uint16))
    images = failing_image(random_images(2, 4, 4), 1, lambda: deep)
    with pytest.raises(UserError, match=r"image 1: pixels of mode 'I;16' do not fit into 8 bits"):
        write_beton(tmp_path / "a.beton", images, Storage())
    with pytest.raises(UserError, match="`unreadable: skip` leaves out damaged images only"):
        write_beton(tmp_path / "a.beton", images, Storage(), skip_unreadable=True)


def test_a_huge_side_is_refused(tmp_path: Path) -> None:
    images = failing_image(
        random_images(2, 4, 4), 1, lambda: Image.new("RGB", (beton.LARGEST_SIDE + 1, 1))
    )
    with pytest.raises(UserError, match=r"image 1: 65536 × 1 pixels"):
        write_beton(tmp_path / "a.beton", images, Storage())


def test_decode_all_needs_one_size(tmp_path: Path) -> None:
    pixels = [random_images(1, 8, 8)[0], random_images(1, 8, 9)[0]]
    write_beton(tmp_path / "a.beton", as_images(pixels), Storage())
    with pytest.raises(UserError, match=r"different sizes .*`loader: stream`"):
        decode_all(tmp_path / "a.beton")


@pytest.mark.parametrize("keep", [0, 10, 1000, 2_000_000])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    write_beton(tmp_path / "a.beton", as_images(random_images(5, 8, 8)), Storage())
    os.truncate(tmp_path / "a.beton", keep)
    with pytest.raises(UserError, match=r"not a whole \.beton file.*convert"):
        decode_all(tmp_path / "a.beton")


@pytest.mark.parametrize(("compiled", "workers"), [(True, 2), (True, 1), (False, 1)])
def test_a_damaged_jpeg_is_refused(
    tmp_path: Path, compiled: bool, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_beton(tmp_path / "a.beton", as_images(smooth_images(3, 20, 20)), Storage(mode="jpg"))
    start = int(beton.Reader(str(tmp_path / "a.beton")).metadata["f0"]["data_ptr"][1])
    with (tmp_path / "a.beton").open("r+b") as file:
        file.seek(start)
        file.write(bytes(20))
    with pytest.raises(UserError, match="image 1 is damaged"):
        decode_all(tmp_path / "a.beton")
    monkeypatch.setattr(beton.Compiler, "is_enabled", compiled)
    stream = BetonStream(tmp_path / "a.beton", CPU, workers)
    assert len(read(stream, [2, 0], 2)) == 2
    boxes, batches = np.tile([0, 0, 16, 16], (3, 1)), []
    with pytest.raises(UserError, match=r"a\.beton: image 1 is damaged"):
        batches.extend(stream.epoch(np.array([2, 0, 1]), boxes, 2, 16))
    assert len(batches) == 1
    assert len(read(stream, [2, 0], 2)) == 2  # and the stream still works


def test_ffcv_changes_nothing_in_the_process_and_ends_quietly(
    mixed: tuple[Path, list[np.ndarray]],
) -> None:
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "import torch; torch.set_num_threads(2); before = torch.get_num_threads()\n"
        "from transfer_influence.datasets import beton\n"
        "import numba, numba.typed\n"
        "assert torch.get_num_threads() == before\n"
        "assert numba.typed.Dict is not dict\n"
        "assert type(beton.IMAGE_MODES) is dict\n"
        "examples, boxes = np.arange(40), np.tile([0, 0, 16, 16], (40, 1))\n"
        "for workers in (1, 2):\n"
        "    stream = beton.BetonStream(Path(sys.argv[1]), torch.device('cpu'), workers)\n"
        "    assert len(list(stream.epoch(examples, boxes, 40, 16))) == 1\n"
        "    assert torch.get_num_threads() == before\n"
        "    assert numba.uint8[::1].mutable\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(mixed[0])], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Streaming


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """Images of several sizes, half of them JPEG."""
    sizes = [(20 + index % 5, 17 + index % 7) for index in range(40)]
    pixels = [smooth_images(8, *size)[index % 8] for index, size in enumerate(sizes)]
    path = tmp_path_factory.mktemp("mixed") / "a.beton"
    write_beton(path, as_images(pixels), Storage(mode="proportion", quality=100))
    return path, pixels


def read(stream: BetonStream, examples: list[int], batch_size: int) -> torch.Tensor:
    """Read central squares of 16 × 16."""
    indices = np.array(examples, np.int64)
    sizes = stream.sizes[indices]
    boxes = np.concatenate([(sizes - 16) // 2, np.full((len(sizes), 2), 16)], axis=1)
    return torch.cat(list(stream.epoch(indices, boxes, batch_size, 16)))


def centre(pixels: np.ndarray) -> np.ndarray:
    top, left = (pixels.shape[0] - 16) // 2, (pixels.shape[1] - 16) // 2
    return pixels[top : top + 16, left : left + 16]


@pytest.fixture
def stream(interpreted: None, mixed: tuple[Path, Any]) -> BetonStream:
    return BetonStream(mixed[0], CPU, workers=1)


def test_stream_crops_images_of_any_size(
    stream: BetonStream, mixed: tuple[Path, list[np.ndarray]]
) -> None:
    examples = [3, 39, 0, 3, 17, 20, 21]
    found = read(stream, examples, 4)
    for image, example in zip(found, examples, strict=True):
        difference = image.numpy().astype(int) - centre(mixed[1][example])
        assert np.abs(difference).max() <= 4  # JPEG


@pytest.mark.parametrize("workers", [1, 2])
def test_compiled_stream_gives_the_same_pixels(
    mixed: tuple[Path, Any], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if beton.share_of_cpus(workers) < workers:
        pytest.skip(f"needs {workers} CPUs")
    examples = list(range(40))
    threads = torch.get_num_threads()
    compiled = BetonStream(mixed[0], CPU, workers)
    first = read(compiled, examples, 7)
    assert torch.equal(read(compiled, examples, 40), first)
    assert torch.equal(read(compiled, examples[::-1], 3), first.flip(0))
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(beton.Compiler, "is_enabled", False)
    assert torch.equal(read(BetonStream(mixed[0], CPU, 1), examples, 9), first)


def test_no_examples_no_batches(stream: BetonStream) -> None:
    assert list(stream.epoch(np.empty(0, np.int64), np.empty((0, 4), np.int64), 4, 16)) == []


def test_yielded_batches_are_not_overwritten(stream: BetonStream) -> None:
    examples, boxes = np.arange(40), np.tile([0, 0, 16, 16], (40, 1))
    copies, kept = [], []
    for batch in stream.epoch(examples, boxes, 2, 16):
        copies.append(batch.clone())
        kept.append(batch)
    assert torch.equal(torch.cat(kept), torch.cat(copies))


@pytest.mark.timeout(60)
def test_an_exception_in_the_pipeline_arrives(stream: BetonStream) -> None:
    stages = stream._loader.code[0]
    working, outputs = stages[0]

    def broken(batch_indices: np.ndarray, **arguments: Any) -> Any:
        if 20 in batch_indices:
            raise RuntimeError("broken pipeline")
        return working(batch_indices, **arguments)

    stages[0] = broken, outputs
    with pytest.raises(RuntimeError, match="broken pipeline"):
        read(stream, list(range(40)), 1)
    stages[0] = working, outputs
    assert len(read(stream, list(range(40)), 1)) == 40  # and the stream still works


@pytest.mark.timeout(60)
@pytest.mark.parametrize("batch_size", [1, 13, 40])
@pytest.mark.parametrize("taken", [1, 2])
def test_leaving_early_leaves_no_thread(stream: BetonStream, batch_size: int, taken: int) -> None:
    before = threading.active_count()
    examples, boxes = np.arange(40), np.tile([0, 0, 16, 16], (40, 1))
    for _ in range(5):
        batches = stream.epoch(examples, boxes, batch_size, 16)
        for _ in range(taken):
            next(batches, None)
        del batches
    gc.collect()
    assert threading.active_count() == before


def test_leaving_early_stops_the_work(stream: BetonStream) -> None:
    stages = stream._loader.code[0]
    working, outputs = stages[0]
    seen: list[int] = []

    def counting(batch_indices: np.ndarray, **arguments: Any) -> Any:
        seen.extend(batch_indices)
        return working(batch_indices, **arguments)

    stages[0] = counting, outputs
    batches = stream.epoch(np.arange(40), np.tile([0, 0, 16, 16], (40, 1)), 1, 16)
    next(batches)
    batches.close()
    assert len(seen) < 20  # a few are made ahead


def test_workers_stay_within_the_cpus_of_the_process() -> None:
    allowed = len(os.sched_getaffinity(0))
    assert beton.share_of_cpus(10_000) <= allowed
    assert beton.share_of_cpus(0) == 1
