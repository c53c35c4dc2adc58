"""Copies of converted data sets on a disk of the machine that reads them.

The jobs of a machine share a copy: the first one makes it while the others wait, and the last one
to leave removes it. Who uses a copy holds a shared lock on its folder, which ends with its process,
so what killed jobs left behind is unlocked, and removed by the next job that comes by. Whoever
makes, opens or removes a copy meanwhile holds another lock, on a file beside it: its door. The
folder that copies lie in stays: another job may be about to use it.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.locks import locked

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
    home = Path(os.path.expandvars(scratch), f"transfer-influence-{os.getuid()}")
    copy = home / f"{sidecar.name}-{sidecar.digest[:16]}"
    try:
        if "$" in str(home):
            raise OSError(f"{scratch}: names an environment variable that is not set")
        sweep(home)
        user = open_copy(data, copy)
    except OSError as error:
        log.warning("scratch: %s; reading %s itself", error, data)
        if home.exists():
            remove_unused(copy)
        yield data
        return
    try:
        yield copy
    finally:
        os.close(user)
        remove_unused(copy)


def open_copy(data: Path, copy: Path) -> int:
    """Return the open, locked folder of a copy, which is made now if there is none.

    Raises:
        OSError: there is too little room, or the folder cannot be written.
    """
    with locked(_door(copy)):
        if not copy.exists():
            make(data, copy)
        user = os.open(copy, os.O_RDONLY)
        fcntl.flock(user, fcntl.LOCK_SH)
        return user


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
    shutil.rmtree(_half(copy), ignore_errors=True)
    try:
        shutil.copytree(data, _half(copy))
        _half(copy).rename(copy)
    except BaseException:  # killed as well: a copy may be many GB
        shutil.rmtree(_half(copy), ignore_errors=True)
        raise
    log.info("%s: %.2f GB copied in %.1f s", copy, size / 1e9, time.monotonic() - started)


def remove_unused(copy: Path, wait: bool = True) -> None:
    """Remove a copy, whole or half, unless somebody uses it.

    Args:
        copy: which.
        wait: for whoever is at its door, instead of leaving it to them.
    """
    with contextlib.suppress(OSError), locked(_door(copy), wait) as ours:  # not ours to remove
        if not ours:
            return
        shutil.rmtree(_half(copy), ignore_errors=True)
        if copy.exists() and not is_used(copy):
            copy.rename(_half(copy))  # should we be killed, no copy with holes is left
            shutil.rmtree(_half(copy), ignore_errors=True)


def is_used(copy: Path) -> bool:
    """Tell whether a process uses a copy; for those at its door."""
    folder = os.open(copy, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False


def sweep(home: Path) -> None:
    """Remove the copies that killed jobs left behind."""
    for path in home.glob("*"):
        name = path.name.removeprefix(".").removesuffix(".lock")
        remove_unused(home / name, wait=False)


def _door(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.lock")


def _half(copy: Path) -> Path:
    return copy.with_name(f".{copy.name}")
