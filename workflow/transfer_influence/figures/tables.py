"""Tables of the report, and reading the tables that figures are drawn from."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes.tables import open_table, read_table, write_table
from transfer_influence.provenance import with_companions

MOST_ROWS = 10_000  # of a table


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically, with five significant digits."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g", lineterminator="\n")


def save_listing(
    table: pa.Table, path: Path, csv: Path, provenance: str, others: Sequence[Path] = ()
) -> None:
    """Write a table as Parquet, and its first rows as CSV for the report.

    Args:
        table: what to write.
        path: Parquet file to write last, with the provenance.
        csv: CSV file to write.
        provenance: of the table, as JSON.
        others: further outputs of the job, written before, which the table is to vouch for.
    """
    save_table(table.slice(0, MOST_ROWS).to_pandas(), csv)
    companions = {file.name: file for file in (csv, *others)}
    write_table(table, path, with_companions(provenance, companions))


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
