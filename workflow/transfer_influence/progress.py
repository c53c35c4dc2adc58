"""Logging and progress bars that read well in a terminal and in a log file."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from transfer_influence.claims import Owner
from transfer_influence.errors import UserError

Item = TypeVar("Item")


class _Lines:
    """Turn tqdm's carriage returns into lines, so that a log file can be read and followed."""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(items: Iterable[Item], description: str, unit: str, total: int | None = None) -> tqdm:
    """Wrap `items` in a progress bar: live in a terminal, a line every 30 s in a log file."""
    if sys.stderr.isatty():
        return tqdm(items, description, total, unit=unit, dynamic_ncols=True)
    return tqdm(
        items,
        description,
        total,
        unit=unit,
        file=_Lines(),
        mininterval=30,
        maxinterval=60,
        ncols=100,
    )


@contextlib.contextmanager
def command_line(program: str) -> Iterator[logging.Logger]:
    """Set up logging for a program, with a line at its start and one at its end.

    A `UserError` becomes one sentence and exit status 1.
    """
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
    )
    log = logging.getLogger(program)
    started = time.monotonic()
    log.info("%s starts: %s", program, Owner.this())
    try:
        yield log
    except UserError as error:
        log.error("%s", error)
        sys.exit(1)
    log.info("%s ends after %.1f s", program, time.monotonic() - started)
