"""The files that a data set was converted from, and whether they are still the same.

Sizes, times and digests of the originals are kept beside the converted images. A file whose size
and time are as they were counts as unchanged; one of another size has changed; one with another
time only is read, and has changed if its bytes have. So images that are mended in place are
noticed, and files that were only touched or copied are not converted again. A file that is
overwritten and keeps both its size and its time is noticed only where every file is read.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence.config.dataset import (
    AS_CONVERTED,
    Dataset,
    FolderDataset,
    TorchvisionDataset,
    find_with_parts,
)
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.progress import progress
from transfer_influence.provenance import file_digest, find_provenance

BUDGET = 1.0  # seconds for a quick look, and once more to read files with other times
BATCH = 100  # files that a thread reads before it hands them over
DAY = 24 * 3600
NAMED = 3  # files in a sentence
NAME = "originals.parquet"
SCHEMA = pa.schema(
    {"path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64(), "digest": pa.string()}
)


@dataclass(frozen=True)
class Originals:
    """What is kept of the originals of a data set, an entry a file.

    Attributes:
        paths: as the data set's file has them, so relative ones start at the working folder.
        sizes: in bytes.
        times: of the last change, in ns.
        digests: of the bytes; None for a file that could not be read.
    """

    paths: Sequence[str]
    sizes: Sequence[int]
    times: Sequence[int]
    digests: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.paths)

    @classmethod
    def read(cls, path: Path) -> "Originals":
        """Read the table that a conversion left.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            table = pq.read_table(path, schema=SCHEMA)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: not readable ({reason}); convert the data set again."
            ) from None
        # By way of NumPy, as Arrow takes seconds to make a list of a million strings.
        columns = (table[name].to_numpy().tolist() for name in SCHEMA.names)
        return cls(*columns)


@dataclass
class Changes:
    """How originals differ from those that were converted, by their paths.

    Attributes:
        changed: other bytes than before.
        unread: another time, and not read for want of time; no change as far as is known.
        came: new in a folder of images.
        went: no longer there.
        touched: another time, but the same bytes: no change. Not told where all files are read.
        out_of_reach: how many files are of parts of which none is there: archived, or on another
            machine. Nothing is known of them, so they are no change.
        looked_at: how many of the files that were converted were looked at.
        total: how many there are.
    """

    changed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    went: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    out_of_reach: int = 0
    looked_at: int = 0
    total: int = 0

    def __bool__(self) -> bool:
        return bool(self.changed or self.came or self.went)

    @property
    def is_sample(self) -> bool:
        """Whether some files were not looked at, or not read though their time is another."""
        return self.looked_at < self.total or bool(self.unread)

    @property
    def sentence(self) -> str:
        """What has changed; `AS_CONVERTED` if nothing has."""
        kinds = {"changed": self.changed, "came": self.came, "went": self.went}
        told = [f"{_count(of)} {kind} ({_few(of)})" for kind, of in kinds.items() if of]
        return ", ".join(told) or AS_CONVERTED


# What a conversion leaves


def original_files(parts: Iterable[Dataset], images: Iterable[str]) -> list[str]:
    """Return the paths of all files that a data set is made from, in order.

    Of folders these are all files below them, of the other kinds the images that are read, and
    tables, lists and arrays. Classes of torchvision that do not tell where their images are have
    files in a folder of their own, or anywhere below `root`.

    Args:
        parts: the settings of the data set; of a union, those of its parts.
        images: names of its images, which are paths where images are files.
    """
    files: set[str] = set()
    silent: set[str] = set()  # classes that name their images after themselves, not by paths
    for name in images:
        if os.path.isfile(name):
            files.add(name)
        else:
            silent.add(name.partition(" ")[0])
    for settings in parts:
        files.update(map(str, settings.files))
        if isinstance(settings, FolderDataset):
            files.update(_below(settings.roots))
        elif isinstance(settings, TorchvisionDataset) and settings.class_name in silent:
            found = _below([_folder_of_class(settings)])
            files.update(file for file in found if not os.path.basename(file).startswith("."))
    return sorted(files)


def _folder_of_class(settings: TorchvisionDataset) -> Path:
    from transfer_influence.vision import torchvision  # slow to import

    cls = getattr(torchvision.datasets, settings.class_name)
    for name in (settings.class_name, getattr(cls, "base_folder", None)):
        if isinstance(name, str) and (settings.root / name).is_dir():
            return settings.root / name
    return settings.root


def write_originals(files: Sequence[str], output: Path, workers: int) -> None:
    """Write the table of originals: `path`, `size` (bytes), `mtime_ns` and `digest` (of the bytes).

    Files that are no files any more, as links may lead nowhere, are left out; of those that cannot
    be read there is no digest.

    Args:
        files: their paths.
        output: Parquet file to write.
        workers: threads that read them.

    Raises:
        UserError: the disk is full.
    """
    # In batches, as a million single calls that wait for their turn take gigabytes.
    batches = [files[first : first + BATCH] for first in range(0, len(files), BATCH)]
    tables = [SCHEMA.empty_table()]
    with ThreadPoolExecutor(workers) as pool, progress((), "originals", "file", len(files)) as bar:
        for batch, table in zip(batches, pool.map(_read_batch, batches), strict=True):
            tables.append(table)
            bar.update(len(batch))
    with atomic(output) as path:
        pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _read_batch(paths: Sequence[str]) -> pa.Table:
    rows = []
    for path in paths:
        status = _status(path)  # before it is read: what changes meanwhile then differs in time
        if status is not None and os.path.isfile(path):  # of others, pipes would never end
            rows.append((path, status.st_size, status.st_mtime_ns, _digest(path)))
    columns = zip(*rows, strict=True) if rows else ([] for _ in SCHEMA)
    return pa.table([pa.array(*pair) for pair in zip(columns, SCHEMA.types, strict=True)], SCHEMA)


# What is there now


def find_changes(
    kept: Originals,
    parts: Iterable[Dataset],
    budget: float | None = None,
    by_content: bool = False,
    new_names: bool = True,
) -> Changes:
    """Compare originals with what was kept of them.

    With a budget, files are looked at in a random order until it is spent. The order is another
    one each day: starts of one day agree with each other, and in time all files have their turn.

    Args:
        kept: what was kept.
        parts: as in `original_files`.
        budget: seconds to look at files, and the same again to read those with other times; None
            for all of them, with a progress bar.
        by_content: read also files whose size and time are as they were.
        new_names: look for new files, which goes through whole folders.
    """
    parts = list(parts)
    changes = Changes(total=len(kept))
    there, gone, suspects = [], [], []
    for row in _within(_order(len(kept), budget), budget, "originals"):
        path, status = kept.paths[row], _status(kept.paths[row])
        changes.looked_at += 1
        if status is None:
            gone.append(path)
            continue
        there.append(path)
        if status.st_size != kept.sizes[row]:
            changes.changed.append(path)
        elif by_content or status.st_mtime_ns != kept.times[row]:
            suspects.append(row)
    _read(suspects, kept, budget, by_content, changes)
    changes.went = _missed(gone, there, parts)
    changes.out_of_reach = len(gone) - len(changes.went)
    if new_names:
        roots = [root for part in parts if isinstance(part, FolderDataset) for root in part.roots]
        changes.came = list(filter(os.path.isfile, set(_below(roots)) - set(kept.paths)))
    for paths in (changes.changed, changes.unread, changes.came, changes.went, changes.touched):
        paths.sort()
    return changes


def _read(
    suspects: list[int], kept: Originals, budget: float | None, by_content: bool, changes: Changes
) -> None:
    """Tell `changes` which of the suspects have other bytes."""
    read = 0
    for row in _within(suspects, budget, "originals that are read"):
        read += 1
        if _digest(kept.paths[row]) != kept.digests[row]:
            changes.changed.append(kept.paths[row])
        elif not by_content:
            changes.touched.append(kept.paths[row])
    changes.unread = [kept.paths[row] for row in suspects[read:]]


def _missed(gone: list[str], there: list[str], parts: list[Dataset]) -> list[str]:
    """Return the files that went, without those of parts of which none is there any more."""
    if not gone or not there:
        return []
    lost = []
    for part in parts:
        places = [part.root] if isinstance(part, TorchvisionDataset) else []
        inside = _Inside([*places, *(place for _, place in part.places)])
        if not any(map(inside, there)):
            lost.append(inside)
    return [path for path in gone if not any(inside(path) for inside in lost)]


class _Inside:
    """Tells whether a path is one of some places or below one."""

    def __init__(self, places: Iterable[Path]) -> None:
        self._places = {str(place) for place in places}
        self._starts = tuple("" if place == "." else f"{place}/" for place in self._places)

    def __call__(self, path: str) -> bool:
        return path in self._places or path.startswith(self._starts)


def state_of_originals(
    data: Path, name: str, folders: list[Path], settings: dict[str, Any]
) -> tuple[str, str | None]:
    """Return how originals differ from those that were converted, by a quick look at every start.

    Where none of them can be seen, as they were archived or are on another machine, nothing is
    known to have changed: what is converted can be used without them. The same holds for each part
    of a union.

    Of files with another time, as many are read as the time of a quick look allows; the others are
    taken to be alike, and the warning says so.

    Args:
        data: folder of the converted data set.
        name: name of the data set.
        folders: where to look for `{name}.yaml`, in order.
        settings: what decides a conversion now, see `conversion_settings`.

    Returns:
        `AS_CONVERTED`, or a sentence on what differs; and a warning where not all was looked at.

    Raises:
        UserError: the data set's file is missing or wrong.
    """
    try:
        before = find_provenance(data / "dataset.json") or {}
    except FileNotFoundError:
        return AS_CONVERTED, None
    if not (data / NAME).exists():
        return AS_CONVERTED, None
    try:
        kept = Originals.read(data / NAME)
    except UserError as error:
        return AS_CONVERTED, f"{error} Until then, changes go unnoticed."
    new_names = before.get("settings", {}).get("data set") != settings["data set"]
    parts = [part for part, _ in find_with_parts(name, folders).values()]
    changes = find_changes(kept, parts, BUDGET, new_names=new_names)
    return changes.sentence, _warning(name, changes) if changes.is_sample else None


def _warning(name: str, changes: Changes) -> str:
    return (
        f"data set {name}: {changes.looked_at} of {changes.total} original files were looked at, "
        f"and {len(changes.unread)} with a new time were not read, as all take too long at every "
        f"start; scripts/check_originals.py compares all."
    )


def _order(count: int, budget: float | None) -> Sequence[int]:
    if budget is None:
        return range(count)
    return np.random.default_rng(today()).permutation(count).tolist()


def today() -> int:
    """Return the number of the day."""
    return int(time.time() // DAY)


def _within(rows: Sequence[int], budget: float | None, description: str) -> Iterator[int]:
    """Yield rows until the seconds of the budget are spent, but at least one."""
    if budget is None:
        yield from progress(rows, description, "file") if rows else ()
        return
    end = time.monotonic() + budget
    for row in rows:
        yield row
        if time.monotonic() > end:
            return


def _below(roots: Iterable[Path]) -> Iterator[str]:
    for root in roots:
        for place, _, files in os.walk(root, followlinks=True):
            yield from (str(Path(place, name)) for name in files)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _digest(path: str) -> str | None:
    try:
        return file_digest(Path(path))
    except OSError:
        return None


def _count(paths: list[str]) -> str:
    return "1 file" if len(paths) == 1 else f"{len(paths)} files"


def _few(paths: list[str]) -> str:
    return ", ".join(paths[:NAMED]) + (", …" if len(paths) > NAMED else "")
