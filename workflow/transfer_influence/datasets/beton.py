"""The one module that knows FFCV: writing, decoding and streaming `.beton` files.

FFCV 1.0.2 is used as it is. What this module adds, with the reason beside each piece of code:
errors arrive instead of hanging, nothing leaks when an epoch is left early, and importing FFCV
changes nothing in the process but its memory.
"""

import hashlib
import os
import queue
import struct
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numba.typed
import numpy as np
import torch

from transfer_influence.config.storage import Storage
from transfer_influence.datasets.images import Images, UnreadableError, stored_mode
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.progress import progress


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Import FFCV without its side effects.

    It builds one two-entry dictionary as `numba.typed.Dict`, which costs 4 s of compilation and
    noise at exit, and is only ever read from Python; and it sets torch to one thread.
    """
    typed_dict, threads = numba.typed.Dict, torch.get_num_threads()
    numba.typed.Dict = dict
    try:
        yield
    finally:
        numba.typed.Dict = typed_dict
        torch.set_num_threads(threads)


with _quiet_import():
    import ffcv
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES, SimpleRGBImageDecoder, resizer
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.memory_managers import OSCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.transforms import ToDevice, ToTensor
    from ffcv.writer import MIN_PAGE_SIZE, DatasetWriter, handle_sample


def _set_numba_threads(threads: int) -> None:
    """Stand in for FFCV's function of that name, which also sets torch's threads."""
    Compiler.num_threads = threads
    numba.set_num_threads(threads)


def _compile_reader(manager: OSCacheManager) -> Callable[..., Any]:
    """Stand in for FFCV's function of that name, whose signature changes a type inside numba.

    From then on numba takes every byte array for a read-only one, and complains at exit.
    """

    def read(start: int, file: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        data, starts, lengths = file
        return data[start : start + lengths[np.searchsorted(starts, start)]]

    return Compiler.compile(read)


Compiler.set_num_threads = _set_numba_threads
OSCacheManager.compile_reader = _compile_reader

LARGEST_SIDE = 2**16 - 1  # a side is stored in 16 bits


def share_of_cpus(workers: int) -> int:
    """Return `workers`, but no more than the CPUs that this process may use, and at least 1."""
    allowed = min(
        len(os.sched_getaffinity(0)),
        numba.config.NUMBA_NUM_THREADS,  # type: ignore[attr-defined]
    )
    return max(1, min(workers, allowed))


# Writing


@dataclass(frozen=True)
class Contents:
    """What a `.beton` file holds.

    Attributes:
        sizes: int64 (N, 2), height and width of every image in pixels.
        histogram: int64 (3, 256), how often each value occurs in red, green and blue.
        digest: SHA-256 over height, width, label and pixels of every image, in order.
        kept: int64 (N,), which of the images given these are.
        pixel_digests: digest of height, width and pixels of every image, 16 hexadecimal digits.
        modes: how many images had each mode in their file, by PIL's name.
        unreadable: names of the images left out as they cannot be read.
        dropped: which of the images given were left out for their pixels, with their digests.
    """

    sizes: np.ndarray
    histogram: np.ndarray
    digest: bytes
    kept: np.ndarray
    pixel_digests: list[str]
    modes: dict[str, int]
    unreadable: list[str]
    dropped: dict[int, str]


@dataclass(frozen=True)
class _Reading:
    """An image as it is to be stored.

    Attributes:
        pixels: uint8 (H, W, 3), contiguous.
        label: of the image.
        mode: its mode in its file, by PIL's name.
        digest: of height, width and pixels, 16 hexadecimal digits.
        histogram: int64 (3, 256), how often each value occurs in red, green and blue.
    """

    pixels: np.ndarray
    label: int
    mode: str
    digest: str
    histogram: np.ndarray


@dataclass
class _Selection:
    """Which images are written; it remembers what it kept and what it left out."""

    skip_unreadable: bool
    unwanted: Collection[str]
    kept: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    dropped: dict[int, str] = field(default_factory=dict)

    def among(self, readings: Iterable[Future[_Reading]], images: Images) -> Iterator[_Reading]:
        """Yield the readings, of all images in order, of those that are kept."""
        for index, waiting in enumerate(readings):
            try:
                reading = waiting.result()
            except UnreadableError:
                if not self.skip_unreadable:
                    raise
                self.unreadable.append(images.name(index))
                continue
            if reading.digest in self.unwanted:
                self.dropped[index] = reading.digest
                continue
            self.kept.append(index)
            yield reading


class _Tally:
    """What is counted of the images while they are written."""

    def __init__(self) -> None:
        self.histogram = np.zeros((3, 256), np.int64)
        self.digest = hashlib.sha256()
        self.pixel_digests: list[str] = []
        self.modes: Counter[str] = Counter()

    def add(self, reading: _Reading) -> None:
        self.histogram += reading.histogram
        self.digest.update(struct.pack("<3q", *reading.pixels.shape[:2], reading.label))
        self.digest.update(reading.pixels.data)
        self.pixel_digests.append(reading.digest)
        self.modes[reading.mode] += 1


class _PageTooSmallError(Exception):
    def __init__(self, needed: int) -> None:
        self.needed = needed


def write_beton(
    path: Path,
    images: Images,
    storage: Storage,
    skip_unreadable: bool = False,
    unwanted: Collection[str] = (),
    workers: int = 1,
) -> Contents:
    """Write images and labels as the fields `image` and `label`; same input, same bytes.

    Args:
        path: file to write.
        images: what to write.
        storage: how to write it.
        skip_unreadable: leave out images that cannot be read.
        unwanted: leave out images with these digests of pixels.
        workers: threads that read images ahead; they change nothing but the time it takes.

    Raises:
        UserError: an image cannot be read, if these are not to be skipped, or is too large; or no
            image is left.
    """
    page_size = MIN_PAGE_SIZE
    while True:
        try:
            with atomic(path) as temporary:
                selection = _Selection(skip_unreadable, frozenset(unwanted))
                return _write(temporary, path.name, images, storage, selection, page_size, workers)
        except _PageTooSmallError as too_small:
            # Begin again: rare, and it saves opening every image twice to learn the largest.
            page_size = 1 << (too_small.needed - 1).bit_length()


def _write(
    path: Path,
    title: str,
    images: Images,
    storage: Storage,
    selection: _Selection,
    page_size: int,
    workers: int,
) -> Contents:
    """Write with FFCV's parts but in this process.

    FFCV's own worker process hangs the writer when a sample raises; and only one worker gives the
    same bytes every time.
    """
    fields = {
        "image": RGBImageField(
            write_mode=storage.mode,
            smart_threshold=storage.smart_threshold,
            jpeg_quality=storage.quality,
            compress_probability=storage.proportion,
        ),
        "label": IntField(),
    }
    writer = DatasetWriter(str(path), fields, page_size=page_size, num_workers=1)
    writer.num_samples = len(images)
    writer.prepare()
    writer.metadata_sm.close()  # memory shared with worker processes, of which there are none
    writer.metadata_sm.unlink()
    metadata = np.zeros(len(images), writer.metadata_type)
    allocator = MemoryAllocator(str(path), writer.data_region_start, page_size)

    tally, kept = _Tally(), selection.kept
    readings = _ahead(lambda index: _read(images, index, storage, page_size), len(images), workers)
    # FFCV draws from NumPy's global stream for `proportion`.
    with _numpy_seed(0), allocator, closing(readings):
        counted = progress(readings, title, "image", len(images))
        for row, reading in enumerate(selection.among(counted, images)):
            sample = (reading.pixels, reading.label)
            handle_sample(sample, row, metadata.dtype.names, metadata, allocator, fields)
            tally.add(reading)
    if not kept:
        raise UserError(f"{path.parent / title}: no image is left to write; check the images.")
    metadata = metadata[: len(kept)]  # the rest of its room in the file stays empty
    writer.header["num_samples"] = len(kept)
    writer.metadata_sm = SimpleNamespace(buf=metadata.tobytes())
    writer.finalize(allocator.allocations)
    sizes = np.stack([metadata["f0"]["height"], metadata["f0"]["width"]], axis=1)
    return Contents(
        sizes=sizes.astype(np.int64),
        histogram=tally.histogram,
        digest=tally.digest.digest(),
        kept=np.array(kept, np.int64),
        pixel_digests=tally.pixel_digests,
        modes=dict(tally.modes),
        unreadable=selection.unreadable,
        dropped=selection.dropped,
    )


def _ahead(
    read: Callable[[int], _Reading], count: int, workers: int
) -> Generator[Future[_Reading], None, None]:
    """Yield the readings of images 0 … `count`-1 in order, while threads read some of the next."""
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[_Reading]] = deque()
    try:
        for index in range(count):
            waiting.append(pool.submit(read, index))
            if len(waiting) > 2 * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _pixel_digest(pixels: np.ndarray) -> str:
    height, width = pixels.shape[:2]
    salt = struct.pack("<2q", height, width)  # or 2 × 8 pixels could pass for 4 × 4
    return hashlib.blake2b(pixels.data, digest_size=8, salt=salt).hexdigest()


def _read(images: Images, index: int, storage: Storage, page_size: int) -> _Reading:
    """Return image `index` as it is to be stored."""
    image = images.image(index)
    pixels = np.ascontiguousarray(resizer(np.asarray(image), storage.max_resolution))
    if max(pixels.shape) > LARGEST_SIDE or pixels.size == 0:
        raise UserError(
            f"{images.name(index)}: {pixels.shape[1]} × {pixels.shape[0]} pixels; remove the image "
            f"or resize it to sides of 1 to {LARGEST_SIDE} pixels."
        )
    # Twice: a JPEG of noise can be larger than its pixels.
    if 2 * pixels.nbytes > page_size:
        raise _PageTooSmallError(2 * pixels.nbytes)
    counts = [np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)]
    label = int(images.labels[index])
    return _Reading(pixels, label, stored_mode(image), _pixel_digest(pixels), np.array(counts))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


# Reading it all at once


def decode_all(path: Path, workers: int = 1) -> np.ndarray:
    """Decode a file whose images all have one size, without compiling anything.

    Returns:
        uint8 (N, H, W, 3).

    Raises:
        UserError: the file is not whole, or its images differ in size.
    """
    reader = _open(path)
    rows = reader.metadata["f0"]
    height, width = int(rows["height"][0]), int(rows["width"][0])
    if (rows["height"] != height).any() or (rows["width"] != width).any():
        raise UserError(
            f"{path}: images of different sizes cannot be held in one array; set `loader: stream`, "
            "or `image_size` in the data set's file."
        )
    file = np.memmap(path, np.uint8, mode="r")
    ends = rows["data_ptr"] + reader.alloc_table["size"]
    images = np.empty((len(rows), height, width, 3), np.uint8)

    def decode(index: int) -> None:
        stored = file[rows["data_ptr"][index] : ends[index]]
        if rows["mode"][index] == IMAGE_MODES["jpg"]:
            if imdecode(stored, images[index], height, width, height, width) != 0:
                raise _damaged(path, index)
        else:
            images[index] = stored.reshape(height, width, 3)

    with ThreadPoolExecutor(share_of_cpus(workers)) as pool:
        for _ in pool.map(decode, range(len(rows))):  # asking for the results raises their errors
            pass
    return images


def _damaged(path: Path, index: int) -> UserError:
    return UserError(f"{path}: image {index} is damaged; convert the data set again.")


def _open(path: Path) -> Reader:
    """Read the tables of a file that `write_beton` wrote.

    FFCV checks nothing: a damaged file fails in many ways, and in compiled code without a word.
    """
    with suppress(Exception):
        reader = Reader(str(path))
        rows, stored = reader.metadata["f0"], reader.alloc_table
        pixels = 3 * rows["height"].astype(np.int64) * rows["width"]
        jpg = rows["mode"] == IMAGE_MODES["jpg"]
        in_order = len(rows) > 0 and np.array_equal(rows["data_ptr"], stored["ptr"])
        if in_order and (jpg | (stored["size"] == pixels)).all():
            return reader
    raise UserError(f"{path}: not a whole .beton file; delete it and convert the data set again.")


# Reading batch by batch


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run pipelines made in this block as plain Python.

    For a few images only: compiling takes seconds, which they do not repay.
    """
    enabled = Compiler.is_enabled
    Compiler.set_enabled(False)
    try:
        yield
    finally:
        Compiler.set_enabled(enabled)


class BetonStream:
    """Read, crop and resize images with FFCV's compiled pipeline, compiled once.

    Attributes:
        sizes: int64 (N, 2), height and width of every image in pixels.
    """

    def __init__(self, path: Path, device: torch.device, workers: int) -> None:
        _open(path)
        self._path = path
        self._decoder = _BoxDecoder()
        pipeline = [self._decoder, ToTensor()]
        if device.type == "cuda":
            pipeline.append(ToDevice(device))
        self._loader = ffcv.Loader(
            str(path),
            batch_size=1,  # set anew for every epoch
            num_workers=share_of_cpus(workers),
            os_cache=True,
            seed=0,  # unused; without it FFCV draws one from NumPy's global stream
            pipelines={"image": pipeline, "label": None},
        )
        self._metadata = self._loader.reader.metadata
        rows = self._metadata["f0"]
        self.sizes = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)

    def epoch(
        self, examples: np.ndarray, boxes: np.ndarray, batch_size: int, resolution: int
    ) -> Iterator[torch.Tensor]:
        """Yield batches of `examples` in that order; the last one may be smaller.

        Args:
            examples: int64 (n,), indices of images.
            boxes: int64 (n, 4), what to keep of each: top, left, height, width in pixels.
            batch_size: images a batch.
            resolution: side R of the result in pixels; another one compiles nothing anew.

        Yields:
            uint8 (B, R, R, 3) on the device; yours to keep.

        Raises:
            UserError: an image is damaged.
            Exception: whatever the pipeline raised.
        """
        if len(examples) == 0:  # FFCV would crash
            return
        self._loader.batch_size = batch_size
        self._decoder.resolution = resolution
        table = _with_boxes(self._metadata, examples, boxes)
        self._loader.reader.metadata = table
        # The consumer may be in inference mode; the thread is not, and could not write into buffers
        # made there.
        with torch.inference_mode(False):
            epoch = _Epoch(self._loader, examples)
        try:
            start = 0
            for (images,) in epoch:
                self._check_whole(table, examples[start : start + len(images)])
                start += len(images)
                yield images.clone()  # FFCV reuses its buffers
            if epoch.error is not None:
                raise epoch.error
        finally:
            epoch.stop()

    def _check_whole(self, table: np.ndarray, examples: np.ndarray) -> None:
        """Check what the decoder noted of images: compiled code cannot raise errors of its own."""
        damaged = examples[table["f0"]["damaged"][examples] != 0]
        if len(damaged):
            raise _damaged(self._path, damaged[0])


class _Epoch(EpochIterator):
    """FFCV's producer thread, which neither hangs nor leaks.

    It copies to the GPU on streams of its own, behind which the CPU and the consumer's stream may
    lag or run ahead; what FFCV leaves unguarded is guarded in `start`, `run_pipeline` and `stop`.
    """

    error: BaseException | None = None

    def start(self) -> None:
        for stream in self._streams():
            # The buffers on the GPU may be memory that the consumer's stream has yet to read.
            stream.wait_stream(self.current_stream)
        super().start()

    def run_pipeline(self, b_ix: int, batch_indices: Any, batch_slot: int, cuda_event: Any) -> Any:
        for stream in self._streams()[batch_slot : batch_slot + 1]:
            # The last copy out of this slot's pinned buffer may not have begun yet.
            stream.synchronize()
        return super().run_pipeline(b_ix, batch_indices, batch_slot, cuda_event)

    def _streams(self) -> list[torch.cuda.Stream]:
        return [stream for stream in self.cuda_streams if stream is not None]

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:  # else the consumer would wait for ever
            self.error = error
            self.output_queue.put(None)

    def stop(self) -> None:
        """End the thread, whether it waits for room in the queue or is at work on a batch."""
        self.iter_ixes = iter(())
        self.close()
        while self.is_alive():
            with suppress(queue.Empty):
                self.output_queue.get(timeout=0.01)
        for stream in self._streams():
            stream.synchronize()  # the buffers are about to be freed


_BOX = (("top", "<i8"), ("left", "<i8"), ("bottom", "<i8"), ("right", "<i8"))


def _with_boxes(metadata: np.ndarray, examples: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return a copy of FFCV's table of images with the box of each as further columns.

    One more column, `damaged`, is for the decoder to fill: not 0 where it has failed.

    FFCV hands the table to compiled code at run time, so it is the way to tell the decoder new
    boxes every epoch without compiling again. A copy for each epoch: its thread may still read it.
    """
    columns = RGBImageField().metadata_type.fields
    own = [(name, column[0]) for name, column in columns.items()]
    row = np.dtype([*own, *_BOX, ("damaged", "<i8")])
    table = np.zeros(len(metadata), [("f0", row)])
    for name in columns:
        table["f0"][name] = metadata["f0"][name]
    top, left, height, width = boxes.T
    edges = (top, left, top + height, left + width)
    for (name, _), values in zip(_BOX, edges, strict=True):
        table["f0"][name][examples] = values
    return table


class _BoxDecoder(SimpleRGBImageDecoder):
    """Decode an image, and resize a box of it to a square.

    FFCV's own decoders draw the box in numba's per-thread random streams, which no seed makes
    reproducible, and reserve room for the largest image once for every place in every buffer.

    Attributes:
        resolution: side of the square in pixels. FFCV asks for it when an epoch begins, to make
            room; the compiled code takes it from the room that it is given.
    """

    resolution = 1

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        shape, dtype = (self.resolution, self.resolution, 3), np.dtype("<u1")
        state = replace(previous_state, jit_mode=True, shape=shape, dtype=dtype)
        return state, AllocationQuery(shape, dtype)

    def generate_code(self) -> Callable[..., Any]:
        read = self.memory_read
        decode_jpeg, resize = Compiler.compile(imdecode), Compiler.compile(resize_crop)
        parallel_range = Compiler.get_iterator()
        jpg = IMAGE_MODES["jpg"]

        def decode_one(row: np.void, square: np.ndarray, file: tuple[np.ndarray, ...]) -> None:
            height, width = int(row["height"]), int(row["width"])
            pixels = read(row["data_ptr"], file)
            if row["mode"] == jpg:
                decoded = np.zeros(height * width * 3, np.uint8)
                row["damaged"] = decode_jpeg(
                    pixels, decoded, height, width, height, width, 0, 0, 1, 1, False, False
                )
                pixels = decoded
            image = pixels.reshape(height, width, 3)
            top, bottom = int(row["top"]), int(row["bottom"])
            left, right = int(row["left"]), int(row["right"])
            resize(image, top, bottom, left, right, square)

        # A function of its own: numba moves allocations out of a parallel loop, and then images of
        # different sizes would share one buffer.
        decode_one = Compiler.compile(decode_one)

        def decode(
            examples: np.ndarray,
            squares: np.ndarray,
            table: np.ndarray,
            file: tuple[np.ndarray, ...],
        ) -> np.ndarray:
            for slot in parallel_range(len(examples)):
                decode_one(table[examples[slot]], squares[slot], file)
            return squares[: len(examples)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
