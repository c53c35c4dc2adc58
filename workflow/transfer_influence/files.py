"""Finished files appear whole or not at all."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from transfer_influence.errors import UserError

# Some writers wrap the error of the system in one of their own and keep its words only.
DISK_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
LITTER_AGE = 24 * 3600  # seconds after which a temporary file has no writer any more


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    The temporary name keeps the suffix, since some writers choose their format by it. On an error
    the temporary file is removed and `path` is left as it was.

    Raises:
        UserError: the disk is full, or the user's quota.
    """
    with disk_full_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_litter(path)
        with renamed(path) as temporary:
            yield temporary


@contextlib.contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn the errors of writing to a full disk into one that names what was to be written.

    Raises:
        UserError: the disk is full, or the user's quota.
    """
    try:
        yield
    except Exception as error:
        reason = next((words for words in DISK_FULL if words in str(error)), None)
        if reason is None:
            raise
        raise UserError(f"{path}: {reason.lower()}; make room and run again.") from None


def remove_litter(path: Path) -> None:
    """Remove old temporary files of `path`, whose writers were killed."""
    for temporary in path.parent.glob(f".{path.stem}.????????{path.suffix}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > LITTER_AGE:
                temporary.unlink()


@contextlib.contextmanager
def renamed(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` at the end."""
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # some writers make files that only their owner can read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
