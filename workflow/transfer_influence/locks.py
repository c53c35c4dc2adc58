"""Locks among the processes of one machine, which end with their process, however that ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock for the time of the block; yield False if another holds it.

    Args:
        path: file that is there only while it is locked, on a disk of this machine.
        wait: until the other gives it back, instead of yielding False.

    Raises:
        OSError: the file cannot be made or locked.
    """
    file = _open(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _open(path: Path, how: int) -> int | None:
    """Return the open, locked file; None if another holds the lock and `how` says not to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, how)
            # Who held it before us has removed it since, and a new one may be another's by now.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    return file
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        os.close(file)
