"""Copies of converted data sets on a disk of the machine that reads them.

The jobs of a machine share a copy: the first one makes it while the others wait, and the last one
to leave removes it. Who uses a copy holds a shared lock on it, which ends with its process, so
what killed jobs left behind is unlocked and removed by the next job that comes by.
"""

import contextlib
import fcntl
import getpass
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from transfer_influence.datasets.sidecar import read_sidecar

log = logging.getLogger(__name__)

MARGIN = 2**30  # bytes to leave free


@contextlib.contextmanager
def staged(data: Path, scratch: str | None) -> Iterator[Path]:
    """Yield the folder to read a converted data set from.

    Args:
        data: folder of the converted data set.
        scratch: folder on a disk of this machine, where environment variables such as $TMPDIR are
            filled in here; None to read `data` itself. A folder that cannot be written, or has too
            little room, costs speed and no result: `data` is read and the log says why.
    """
    if scratch is None:
        yield data
        return
    sidecar = read_sidecar(data / "dataset.json")
    home = Path(os.path.expandvars(scratch)) / f"transfer-influence-{getpass.getuser()}"
    copy = home / f"{sidecar.name}-{sidecar.digest[:16]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweep(home)
        lock = open_copy(data, copy)
    except OSError as error:
        log.warning("scratch: %s; reading %s itself", error, data)
        yield data
        return
    try:
        yield copy
    finally:
        os.close(lock)
        remove_unused(copy)


def open_copy(data: Path, copy: Path) -> int:
    """Return a shared lock on a whole copy, made now if there is none.

    Raises:
        OSError: there is too little room, or the folder cannot be written.
    """
    while True:
        lock = os.open(_lock_of(copy), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not copy.exists():
                make(data, copy)
            fcntl.flock(lock, fcntl.LOCK_SH)
            # Between the two locks, the last user before may have removed the copy, or the lock
            # itself while we waited for it.
            if copy.exists() and _is(lock, _lock_of(copy)):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def make(data: Path, copy: Path) -> None:
    """Copy a converted data set; the copy appears whole or not at all."""
    size = sum(path.stat().st_size for path in data.iterdir())
    free = shutil.disk_usage(copy.parent).free
    if size + MARGIN > free:
        raise OSError(
            f"{copy.parent}: {free / 1e9:.1f} GB are free, and the copy of {data} takes "
            f"{size / 1e9:.1f} GB and leaves {MARGIN / 1e9:.1f} GB"
        )
    started = time.monotonic()
    half = copy.with_name(f".{copy.name}")  # the exclusive lock makes it ours
    shutil.rmtree(half, ignore_errors=True)
    try:
        shutil.copytree(data, half)
        half.rename(copy)
    except OSError:
        shutil.rmtree(half, ignore_errors=True)
        raise
    log.info("%s: %.2f GB copied in %.1f s", copy, size / 1e9, time.monotonic() - started)


def remove_unused(copy: Path) -> None:
    """Remove a copy, whole or half, that nobody uses."""
    with contextlib.suppress(OSError):  # locked by another, or gone
        lock = os.open(_lock_of(copy), os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is(lock, _lock_of(copy)):
                return  # another removed it first, and somebody may have made it anew
            for folder in (copy, copy.with_name(f".{copy.name}")):
                shutil.rmtree(folder, ignore_errors=True)
            _lock_of(copy).unlink()
            copy.parent.rmdir()  # fails while it holds another copy
        finally:
            os.close(lock)


def sweep(home: Path) -> None:
    """Remove the copies that killed jobs left behind."""
    for lock in home.glob("*.lock"):
        remove_unused(lock.with_suffix(""))


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.lock")


def _is(lock: int, path: Path) -> bool:
    """Tell whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
