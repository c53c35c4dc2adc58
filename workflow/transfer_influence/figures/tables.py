"""Tables of the report, and reading the tables that figures are drawn from."""

from pathlib import Path

import pandas as pd

from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes.tables import open_table, read_table

MOST_ROWS = 10_000  # of a table


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically, with five significant digits."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g", lineterminator="\n")


def first_rows(path: Path) -> pd.DataFrame:
    """Return the first 10,000 rows of a table, which may have none: a report is to be opened."""
    batches = open_table(path).iter_batches(MOST_ROWS)
    rows = next(batches, None)
    return read_table(path).to_pandas() if rows is None else rows.to_pandas()


def read_rows(path: Path, columns: list[str], others: bool = False) -> pd.DataFrame:
    """Read columns of a table, or all `others` as well, and refuse a table without them."""
    file = open_table(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"{path}: has no column {missing[0]!r}, so it is no such table; name another file."
        )
    rows = file.read(None if others else columns).to_pandas()
    if rows.empty:
        raise UserError(f"{path}: has no rows; run the job that makes it again.")
    return rows
