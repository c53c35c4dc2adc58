"""Subpopulations: what a source class helps most, and what carries a target class."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.applications.blocks import blocks, largest, leaders
from transfer_influence.applications.chance import Chance
from transfer_influence.influence.intervals import significant
from transfer_influence.outcomes.tables import read_table, table_writer

MOST_HELPED = 10  # target examples listed for each source class
CARRIERS = 10  # source classes listed for each target class

HELPED = pa.schema(
    {
        "unit": pa.int32(),
        "unit_name": pa.string(),
        "place": pa.int32(),
        "example": pa.int32(),
        "name": pa.string(),
        "class": pa.string(),
        "proves": pa.bool_(),
        "influence": pa.float32(),
        "standard_error": pa.float32(),
        "q_value": pa.float64(),
        "beyond_chance": pa.bool_(),
    }
)
CARRIED = pa.schema(
    {
        "label": pa.int32(),
        "class": pa.string(),
        "place": pa.int32(),
        "unit": pa.int32(),
        "unit_name": pa.string(),
        "influence": pa.float32(),
        "standard_error": pa.float32(),
        "q_value": pa.float64(),
        "beyond_chance": pa.bool_(),
    }
)


def write_helped(
    influences: Path,
    examples: Path,
    classes: list[str],
    proves: np.ndarray,
    path: Path,
    provenance: str,
) -> None:
    """Write the 10 target test examples that each source class helps most.

    Columns: `unit`, `unit_name` of the source class; `place` (1 = helped most); `example` (index in
    the target's test split), `name` and `class` of the example; `proves`, whether it is one of
    those that prove the ranking; `influence`, `standard_error`; `q_value` among all influences on
    single examples, and `beyond_chance`, whether that is at most 5 %, null where it is not known.
    Examples that a class does not help are left out. No rows where the influences on single
    examples are left out, see `influence.largest_table_gb`.

    Args:
        influences: table of influences.
        examples: the target's `test.examples.parquet`.
        classes: names of the target's classes.
        proves: whether a test image proves the ranking, bool (examples,), see `TestImages`.
        path: Parquet file to write.
        provenance: of the output.
    """
    images = read_table(examples, ["label", "name"])
    names = images["name"].combine_chunks()
    of_class = pa.array(classes).take(images["label"].combine_chunks())
    chance = Chance.of(influences, "example", side=1)
    with table_writer(path, HELPED, provenance) as writer:
        for block in blocks(influences, "example"):
            chosen = largest(block.influence, MOST_HELPED)
            values = np.take_along_axis(block.influence, chosen, axis=1)
            errors = np.take_along_axis(block.standard_error, chosen, axis=1)
            helped = values > 0
            row, place = np.nonzero(helped)
            q_values = chance.q_values(values[helped], errors[helped], block.freedom[row])
            example = pa.array(chosen[helped])
            columns = [
                block.units[row].astype(np.int32),
                pa.array(block.names).take(pa.array(row)),
                (place + 1).astype(np.int32),
                example.cast(pa.int32()),
                names.take(example),
                of_class.take(example),
                proves[chosen[helped]],
                values[helped],
                pa.array(errors[helped], from_pandas=True),
                pa.array(q_values, from_pandas=True),
                significant(q_values),
            ]
            arrays = [pa.array(column) for column in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=HELPED))


def list_carriers(influences: Path, classes: list[str]) -> pa.Table:
    """Return the 10 source classes that carry each target class: that help it most.

    Columns: `label` and `class`, number and name of the target class; `place` (1 = helps most);
    `unit`, `unit_name` of the source class; `influence`, `standard_error`; `q_value` among all
    influences on target classes, and `beyond_chance`, whether that is at most 5 %, null where it is
    not known. Source classes that do not help are left out. No rows where the influences on target
    classes are left out, see `influence.largest_table_gb`, or the outcome is one for the whole
    target.
    """
    best = leaders(influences, "class", np.arange(len(classes)), CARRIERS, sign=1)
    if best is None:
        return CARRIED.empty_table()
    label, place = np.nonzero(best.influence.T > 0)
    at = place, label
    chance = Chance.of(influences, "class", side=1)
    q_values = chance.q_values(best.influence[at], best.standard_error[at], best.freedom[at])
    columns = [
        label.astype(np.int32),
        pa.array(classes).take(pa.array(label)),
        (place + 1).astype(np.int32),
        best.units[at].astype(np.int32),
        best.names[at],
        best.influence[at],
        pa.array(best.standard_error[at], from_pandas=True),
        pa.array(q_values, from_pandas=True),
        significant(q_values),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=CARRIED)
