"""Influences of one (target, mode): estimated by one estimator, and written."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.influence.estimators import (
    DifferenceInMeans,
    Estimator,
    Fit,
    joined,
)
from transfer_influence.influence.held_out import bootstrap
from transfer_influence.influence.intervals import (
    Certainty,
    bootstrapped,
    closed_form,
    significant,
    t_interval,
)
from transfer_influence.influence.measurements import GIGABYTE, Measurements, Outcomes
from transfer_influence.influence.ridge import Ridge
from transfer_influence.outcomes.tables import list_column, table_writer

log = logging.getLogger(__name__)

OTHER_MEMORY = GIGABYTE  # Python and its libraries, and a chunk of outcomes
ROW_GROUP = 2**26  # bytes of lists, about
OF_ACCURACY = ("accuracy_influence", "accuracy_standard_error", "accuracy_low", "accuracy_high")


def room_for(memory_gb: float) -> float:
    """Return the bytes that matrices may take of a job's memory."""
    return memory_gb * GIGABYTE - OTHER_MEMORY


def make_estimator(stage: InfluenceStage, data: Measurements, memory: float) -> Estimator:
    """Return the estimator that a stage names, with `memory` bytes for its matrices.

    Raises:
        UserError: they do not fit, or there are too few models.
    """
    if stage.estimator == "ridge":
        return Ridge(data, memory)
    if stage.estimator == "lasso":
        from transfer_influence.influence.lasso import Lasso  # slow to import

        return Lasso(data, memory, stage.held_out, stage.seed)
    return DifferenceInMeans(data, memory)


def estimate(
    data: Measurements,
    stage: InfluenceStage,
    names: list[str],
    memory_gb: float,
    path: Path,
    provenance: str,
) -> None:
    """Estimate influences and write one row a source class.

    Columns: `unit` (class index), `name`, and on the whole target `influence`, `standard_error`,
    `low` and `high` (ends of the 95 % interval), `p_value` (two-sided), `q_value`, `significant`
    (q-value at most 0.05), all null for `lasso`; the same on the accuracy, whatever the outcome,
    `accuracy_influence`, `accuracy_standard_error`, `accuracy_low` and `accuracy_high` (closed
    form), null where the summary does not say what is correct; all these by the images that rank,
    see `TestImages`. Then float32 lists with one entry a target class,
    `class_influence` and `class_standard_error`, and with one entry a target test example,
    `example_influence` and `example_standard_error`; and `class_freedom` and `example_freedom`, the
    degrees of freedom of these standard errors, the fewest of a row.
    Lists are empty for a scalar outcome and where the table would be larger than
    `stage.largest_table_gb`; lists of standard errors of `lasso` are null.

    Raises:
        UserError: the estimator does not fit into memory, or there are too few models for it.
    """
    memory = room_for(memory_gb)
    estimator = make_estimator(stage, data, memory)
    both = joined(estimator.fit(Outcomes.of(np.hstack([data.whole, data.accuracy]))))
    whole, accuracy = both.column(0), both.column(1) if data.accuracy.size else None
    known = certainty(stage, data, whole, estimator)
    of_whole = {**_whole_columns(whole, known), **_accuracy_columns(accuracy, data.classes)}
    classes, examples = wanted(data, stage.largest_table_gb)
    details = data.details(classes, examples)
    cut = details.columns - (data.examples.columns if examples else 0)
    fits = estimator.fit(details) if details.columns else iter([_nothing(data.classes)])
    first = 0
    with contextlib.ExitStack() as stack:
        writer = None
        for part in pieces(fits):
            units = slice(first, first + len(part.influence))
            columns = {name: column[units] for name, column in of_whole.items()}
            rows = _rows(units, names, columns, part, cut)
            if writer is None:
                writer = stack.enter_context(table_writer(path, rows.schema, provenance))
            writer.write_table(rows)
            first = units.stop


def certainty(
    stage: InfluenceStage, data: Measurements, whole: Fit, estimator: Estimator
) -> Certainty:
    """Return how sure the influences on the whole target are; nothing is known of lasso's."""
    if stage.intervals == "closed_form" or stage.estimator == "lasso":
        return closed_form(whole, estimator)
    counts = bootstrap(data, stage.bootstrap_replicates, stage.seed)
    return bootstrapped(whole, estimator, counts, len(np.unique(data.groups)))


def wanted(data: Measurements, largest_table_gb: float) -> tuple[bool, bool]:
    """Return whether tables are to hold influences on target classes, and on single examples."""
    room = largest_table_gb * GIGABYTE / (data.classes * 2 * 4)
    classes = data.targets.shape[1] - 1
    for columns, what in [(classes, "classes"), (data.examples.columns, "examples")]:
        if columns > room:
            log.info("without target %s, as the table would exceed largest_table_gb", what)
    return 0 < classes <= room, 0 < data.examples.columns <= room


def pieces(fits: Iterator[Fit]) -> Iterator[Fit]:
    """Cut blocks of source classes into row groups."""
    for fit in fits:
        count, columns = fit.influence.shape
        size = max(1, ROW_GROUP // (8 * max(columns, 1)))
        for first in range(0, count, size):
            yield fit.units(slice(first, first + size))


def _nothing(classes: int) -> Fit:
    empty = np.empty((classes, 0))
    return Fit(empty, empty, empty, empty)


def _whole_columns(whole: Fit, known: Certainty) -> dict[str, pa.Array]:
    """Return what is known of the influences on the whole target."""
    return {
        "influence": pa.array(whole.influence[:, 0]),
        "standard_error": _or_null(known.standard_error),
        "low": _or_null(known.low),
        "high": _or_null(known.high),
        "p_value": _or_null(known.p_value),
        "q_value": _or_null(known.q_value),
        "significant": significant(known.q_value),
    }


def _accuracy_columns(accuracy: Fit | None, units: int) -> dict[str, pa.Array]:
    """Return what is known of the influences on the accuracy."""
    values = np.full((4, units), np.nan)
    if accuracy is not None:
        values = np.array(
            [accuracy.influence[:, 0], accuracy.standard_error[:, 0], *t_interval(accuracy)]
        )
    return dict(zip(OF_ACCURACY, map(_or_null, values), strict=True))


def _rows(
    units: slice, names: list[str], of_whole: dict[str, pa.Array], part: Fit, cut: int
) -> pa.Table:
    return pa.table(
        {
            "unit": pa.array(range(units.start, units.stop), pa.int32()),
            "name": names[units],
            **of_whole,
            "class_influence": _lists(part.influence[:, :cut]),
            "class_standard_error": _lists(part.standard_error[:, :cut]),
            "class_freedom": _least(part.freedom[:, :cut]),
            "example_influence": _lists(part.influence[:, cut:]),
            "example_standard_error": _lists(part.standard_error[:, cut:]),
            "example_freedom": _least(part.freedom[:, cut:]),
        }
    )


def _least(freedom: np.ndarray) -> pa.Array:
    """Return the fewest degrees of freedom in each row; null where none are known."""
    if freedom.size == 0 or np.isnan(freedom).all():
        return pa.nulls(len(freedom), pa.float64())
    return pa.array(np.nanmin(freedom, axis=1))


def _or_null(values: np.ndarray) -> pa.Array:
    return pa.array(values, from_pandas=True)


def _lists(values: np.ndarray) -> pa.Array:
    if values.size and np.isnan(values).all():
        return pa.nulls(len(values), pa.list_(pa.float32(), values.shape[1]))
    return list_column(values.astype(np.float32))
