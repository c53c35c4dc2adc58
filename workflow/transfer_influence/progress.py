"""Logging and progress bars that read well in a terminal and in a log file."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

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
    """Set up logging for a program; report a `UserError` as one sentence and exit with status 1."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
    )
    try:
        yield logging.getLogger(program)
    except UserError as error:
        logging.getLogger(program).error("%s", error)
        sys.exit(1)
