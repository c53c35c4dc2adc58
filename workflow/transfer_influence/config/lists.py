"""Lists of source units that a study names: `.txt`, `.csv` or `.npy` files."""

import csv
from pathlib import Path

import numpy as np

from transfer_influence.errors import UserError


def list_entries(path: Path) -> list[str]:
    """Return the entries of a list as text, in the order of the file.

    Raises:
        UserError: the file is missing, unreadable or empty.
    """
    entries = _entries(path)
    if not entries:
        raise UserError(f"{path}: lists no unit; write at least one.")
    return entries


def _entries(path: Path) -> list[str]:
    try:
        if path.suffix == ".npy":
            return [str(entry) for entry in np.load(path, allow_pickle=False).ravel().tolist()]
        if path.suffix == ".csv":
            with path.open(newline="") as opened:
                rows = [row for row in csv.reader(opened) if row]
            header = rows[0] if rows else []
            column = next((header.index(key) for key in ("name", "unit") if key in header), None)
            return [row[0] for row in rows] if column is None else [row[column] for row in rows[1:]]
        if path.suffix == ".txt":
            return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct the path.") from None
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"{path}: not readable as a list of units ({error}); mend it.") from None
    raise UserError(f"{path}: not a .txt, .csv or .npy file; write the list as one of these.")
