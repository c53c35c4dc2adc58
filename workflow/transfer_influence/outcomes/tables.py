"""Parquet tables of outcomes: columns, writing, reading.

Per-example columns are fixed-size lists, one entry a test image in the order of the target's test
split. Provenance (settings, digests, versions, device, wall time) is JSON in the file's metadata.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.provenance import KEY, DigestingFile

PER_EXAMPLE = (
    "raw_margin",
    "softmax_margin",
    "raw_logit",
    "softmax_probability",
    "log_odds",
    "is_correct",
    "prediction",
)


def list_column(rows: np.ndarray) -> pa.Array:
    """Turn a matrix into a column of fixed-size lists, one row of the matrix each.

    Arrow has no lists of fixed size 0, so a matrix without columns becomes plain empty lists.
    """
    if rows.shape[1] == 0:
        return pa.array([[]] * len(rows), pa.list_(pa.from_numpy_dtype(rows.dtype)))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Turn a column of fixed-size lists back into a matrix."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return whole.flatten().to_numpy(zero_copy_only=False).reshape(len(whole), -1)


def write_table(table: pa.Table, path: Path, provenance: str) -> None:
    """Write a table with its provenance, atomically."""
    with table_writer(path, table.schema, provenance) as writer:
        writer.write_table(table)


@contextlib.contextmanager
def table_writer(path: Path, schema: pa.Schema, provenance: str) -> Iterator[pq.ParquetWriter]:
    """Yield a writer of tables of one schema; the file appears, whole, when the block ends well.

    Its metadata are the provenance and `digest`, of all rows: equal rows give an equal digest.
    """
    with (
        atomic(path) as temporary,
        contextlib.closing(DigestingFile(temporary)) as file,
        pq.ParquetWriter(file, schema.remove_metadata(), compression="zstd") as writer,
    ):
        yield writer
        told = json.loads(provenance or "{}") | {"digest": file.digest}
        writer.add_key_value_metadata({KEY: json.dumps(told)})


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of reading a Parquet file into one that names it.

    Raises:
        UserError: the file is missing or is no whole Parquet file.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the job that makes it again.") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: not a whole Parquet file ({reason}); delete it and run the workflow again."
        ) from None


def open_table(path: Path) -> pq.ParquetFile:
    """Open a Parquet file without reading its rows.

    Raises:
        UserError: the file is missing or is no whole Parquet file.
    """
    with damage_named(path):
        return pq.ParquetFile(path)


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read some columns of a Parquet file, or all.

    Raises:
        UserError: the file is missing or is no whole Parquet file.
    """
    with damage_named(path):
        return pq.ParquetFile(path).read(columns)
