"""All shards of one (target, mode), checked and put together."""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer_influence.config.study import FailedModels
from transfer_influence.errors import UserError
from transfer_influence.outcomes.tables import read_table, table_writer
from transfer_influence.progress import progress
from transfer_influence.provenance import identity, read_provenance

log = logging.getLogger(__name__)

ROW_GROUP = 64


def summarize(
    transfers: list[Path],
    sources: list[Path],
    models: int,
    failed_models: FailedModels,
    output: Path,
    provenance: str,
) -> None:
    """Write the outcomes of models 0 … `models`-1 of all shards, but for those that failed.

    The table has the columns of the transfers, and `mask` and `source_accuracy` of the sources. It
    is written as it is read: memory holds a shard and a row group.

    Args:
        transfers: tables of transferred models, one a shard.
        sources: tables of the source models, in the same order.
        models: how many models to keep.
        failed_models: whether a model that failed stops the study.
        output: Parquet file to write.
        provenance: of the output.

    Raises:
        UserError: a shard is missing or damaged; a model is missing or there twice; an outcome is
            not finite; a model failed and `failed_models` is "stop"; all of them failed.
    """
    failed: list[int] = []
    seen: list[int] = []
    shards = progress(joined(transfers, sources, failed), "shards", "shard", len(transfers))
    kept = (rows.filter(pc.field("model") < models) for rows in shards)
    with contextlib.ExitStack() as stack:
        writer = None
        for group in regrouped(kept):
            if writer is None:
                writer = stack.enter_context(table_writer(output, group.schema, provenance))
            writer.write_table(group)
            seen += group["model"].to_pylist()
        failed = [model for model in failed if model < models]
        check_each_once(seen + failed, models, output)
        check_failed(failed, seen, failed_models, output)
    log.info("%s: %d models", output, len(seen))


def regrouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of `ROW_GROUP` rows, the last one smaller.

    Estimators add up row group by row group, so its size must not depend on that of the shards if
    the last bits of an influence are not to.
    """
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        rows = pa.concat_tables(waiting)
        whole = len(rows) - len(rows) % ROW_GROUP
        for first in range(0, whole, ROW_GROUP):
            yield rows.slice(first, ROW_GROUP)
        waiting = [rows.slice(whole)]
    if waiting and len(waiting[0]):
        yield waiting[0]


def joined(transfers: list[Path], sources: list[Path], failed: list[int]) -> Iterator[pa.Table]:
    """Yield the rows of each shard, checked, with the masks of its source models.

    Models that failed are left out, and their numbers appended to `failed`.
    """
    columns: int | None = None
    for path, source_path in zip(transfers, sources, strict=True):
        rows, source, lost = read_outcomes(path, source_path)
        failed += lost
        if not len(rows):
            continue
        examples = rows["raw_margin"].type.list_size
        if columns not in (None, examples):
            raise UserError(
                f"{path}: {examples} test images, but the shards before it have {columns}; delete "
                f"it and run again."
            )
        columns = examples
        check_finite(rows, path)
        yield rows.append_column("mask", source["mask"]).append_column(
            "source_accuracy", source["accuracy"]
        )


def read_outcomes(path: Path, source_path: Path) -> tuple[pa.Table, pa.Table, list[int]]:
    """Read the outcomes of transferred models and the rows of their source models.

    Returns:
        Two tables of the same models in the same order, without those that failed; and the numbers
        of these.

    Raises:
        UserError: the two files are of other models.
    """
    rows = read_table(path).replace_schema_metadata(None)
    source = read_table(source_path)
    check_same_models(path, rows, source_path, source)
    failed = rows["failed"]
    whole = pc.invert(failed)
    lost = rows["model"].filter(failed).to_pylist()
    return rows.filter(whole).drop_columns("failed"), source.filter(whole), lost


def check_failed(
    failed: list[int], seen: list[int], failed_models: FailedModels, output: Path
) -> None:
    """Say which models are left out; refuse if that is not wanted or leaves none.

    Raises:
        UserError: see there.
    """
    if not failed:
        return
    numbers = ", ".join(map(str, failed))
    if failed_models == "stop" or not seen:
        remedy = "or go on without them by failed_models: exclude" if seen else "as none is left"
        raise UserError(
            f"{output}: the training of {len(failed)} model(s) failed ({numbers}); change the "
            f"recipe, {remedy}."
        )
    log.warning("%s: without %d model(s) whose training failed: %s", output, len(failed), numbers)


def check_same_models(path: Path, rows: pa.Table, source_path: Path, source: pa.Table) -> None:
    """Refuse transfers of other source models than those they are joined with."""
    made_from = read_provenance(path)["inputs"].get("sources")
    same = rows["model"].to_pylist() == source["model"].to_pylist()
    if not same or made_from != identity(source_path):
        raise UserError(
            f"{path}: its models are not those of {source_path}; delete it and run again."
        )


def check_finite(rows: pa.Table, path: Path) -> None:
    """Refuse outcomes that are not finite, naming the model.

    Columns that may be undefined by design, such as `auroc`, are null there and pass.
    """
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        if not pa.types.is_floating(values.type):
            continue
        finite = pc.is_finite(values).fill_null(True).to_numpy(zero_copy_only=False)
        if not finite.all():
            position = int(np.argmin(finite)) * len(rows) // len(finite)
            raise UserError(
                f"{path}: {name} of model {rows['model'][position]} is not finite; delete the file "
                f"and run again, with a lower learning_rate if it comes back."
            )


def check_each_once(seen: list[int], models: int, output: Path) -> None:
    """Refuse a summary in which a model is missing or stands twice."""
    numbers, counts = np.unique(seen, return_counts=True)
    wrong = sorted(set(range(models)) - set(numbers.tolist())) or numbers[counts > 1].tolist()
    if wrong:
        raise UserError(
            f"{output}: model {wrong[0]} is not in the shards exactly once; run the workflow again."
        )
