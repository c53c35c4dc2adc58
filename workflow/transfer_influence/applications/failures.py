"""Debugging failures: which source classes make models get a target example wrong.

A culprit is a source class with a negative influence on the example. The models that were retrained
without it, compared with those that lost as many others, give a hint whether it is one indeed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from transfer_influence.applications.blocks import leaders
from transfer_influence.outcomes.summary import read_outcomes
from transfer_influence.outcomes.tables import (
    damage_named,
    matrix,
    open_table,
    read_table,
)
from transfer_influence.subsets import unpack

MOST_SHARE = 0.5  # of the models that are right about an example that counts as a failure
MOST_FAILURES = 200  # worst first
CULPRITS = 3  # source classes blamed for each
LEAST_MODELS = 3  # of each kind, to say whether a failure is corrected; two agree by chance

WRITTEN = pa.schema(
    {
        "example": pa.int32(),
        "name": pa.string(),
        "class": pa.string(),
        "predicted": pa.string(),
        "share_correct": pa.float64(),
        "place": pa.int32(),
        "unit": pa.int32(),
        "unit_name": pa.string(),
        "influence": pa.float32(),
        "standard_error": pa.float32(),
        "removed_models": pa.int32(),
        "removed_correct": pa.float64(),
        "control_models": pa.int32(),
        "control_correct": pa.float64(),
        "whole_models": pa.int32(),
        "whole_correct": pa.float64(),
        "corrected": pa.bool_(),
    }
)


@dataclass(frozen=True)
class Retrained:
    """The retrained models, and whether they are right about some target examples.

    Attributes:
        masks: what they saw, one bit a source unit, packed.
        is_correct: bool (models, examples).
    """

    masks: list[bytes]
    is_correct: np.ndarray


def list_failures(
    summary: Path,
    influences: Path,
    examples: Path,
    classes: list[str],
    transfers: list[Path],
    sources: list[Path],
) -> pa.Table:
    """Return the target test examples that most models get wrong, and who is to blame.

    One row an example and culprit, of which there are at most 3; at most 200 examples, the worst
    first. Columns: `example` (index in the target's test split), `name`, `class`; `predicted`, the
    most frequent wrong answer; `share_correct`, the share of models that are right; `place` (1 =
    pushes hardest the wrong way), `unit`, `unit_name`, `influence`, `standard_error` of the
    culprit, null where none is known. Of the retrained models, three kinds, each with its number
    and the share of them that are right:
    - `removed_models`, `removed_correct`: lost this culprit and all those before it;
    - `control_models`, `control_correct`: lost as many units as one of these, but kept this one;
    - `whole_models`, `whole_correct`: lost nothing.
    `corrected`: whether most of the first are right and not most of the others; null where there
    are fewer than 3 of a kind. It is a hint that this culprit, and not any removal, does it: among
    few models chance alone does, in some 7 % of rows with the removals of the demo.

    Args:
        summary: outcomes of all models.
        influences: table of influences; without those on single examples, no culprits are known.
        examples: the target's `test.examples.parquet`.
        classes: names of the target's classes.
        transfers: tables of retrained models, transferred; may be none.
        sources: tables of the retrained source models, in the same order.
    """
    share = share_correct(summary)
    failed = failures(share)
    images = read_table(examples, ["label", "name"]).take(pa.array(failed))
    wrong = frequent_mistakes(summary, failed, len(classes))
    retrained = read_retrained(transfers, sources, failed)
    about = pd.DataFrame(
        {
            "example": failed,
            "name": images["name"].to_pylist(),
            "class": [classes[label] for label in images["label"].to_pylist()],
            "predicted": [classes[label] for label in wrong],
            "share_correct": share[failed],
        }
    )
    judged = culprits(influences, failed, retrained)
    rows = about.merge(judged, how="left", left_index=True, right_on="failure")
    table = pa.Table.from_pandas(rows.drop(columns="failure"), WRITTEN, preserve_index=False)
    return table.replace_schema_metadata(None)


def share_correct(summary: Path) -> np.ndarray:
    """Return the share of models that are right about each example, float64 (examples,)."""
    models, correct = 0, np.zeros(1)
    for rows in _row_groups(summary, ["is_correct"]):
        correct = correct + matrix(rows["is_correct"]).sum(axis=0, dtype=np.int64)
        models += len(rows)
    return correct / models


def failures(share: np.ndarray) -> np.ndarray:
    """Return the examples (int64) that most models get wrong, the worst first, at most 200."""
    order = np.argsort(share, kind="stable")
    return order[share[order] < MOST_SHARE][:MOST_FAILURES]


def frequent_mistakes(summary: Path, examples: np.ndarray, classes: int) -> np.ndarray:
    """Return the most frequent wrong prediction for each example, int64 (examples,)."""
    counts = np.zeros((len(examples), classes), np.int64)
    columns = np.arange(len(examples))
    for rows in _row_groups(summary, ["is_correct", "prediction"]):
        predicted = matrix(rows["prediction"])[:, examples]
        wrong = ~matrix(rows["is_correct"])[:, examples].astype(bool)
        np.add.at(counts, (np.broadcast_to(columns, wrong.shape)[wrong], predicted[wrong]), 1)
    return counts.argmax(axis=1)


def read_retrained(transfers: list[Path], sources: list[Path], examples: np.ndarray) -> Retrained:
    """Read the masks of retrained models, and whether they are right about some examples."""
    masks: list[bytes] = []
    correct = [np.zeros((0, len(examples)), bool)]
    for path, source_path in zip(transfers, sources, strict=True):
        rows, source, _ = read_outcomes(path, source_path)
        if len(rows):
            masks += source["mask"].to_pylist()
            correct.append(matrix(rows["is_correct"])[:, examples].astype(bool))
    return Retrained(masks, np.concatenate(correct))


def culprits(influences: Path, examples: np.ndarray, retrained: Retrained) -> pd.DataFrame:
    """Blame the source units with the most negative influence, and check by the retrained models.

    Returns:
        One row an example and culprit: `failure`, position in `examples`, and the columns of
        `list_failures` from `place` on.
    """
    units = open_table(influences).metadata.num_rows
    found = leaders(influences, "example", examples, CULPRITS, sign=-1)
    columns = ["failure", *WRITTEN.names[WRITTEN.get_field_index("place") :]]
    rows = []
    if found is not None:
        kept, lost_units = _kept(retrained.masks, units, found.units)
        for failure in range(len(examples)):
            correct = retrained.is_correct[:, failure]
            lost = np.ones(len(correct), bool)
            for place in np.flatnonzero(found.influence[:, failure] < 0):
                at = place, failure
                lost = lost & ~kept[:, place, failure]
                control = kept[:, place, failure] & np.isin(lost_units, lost_units[lost])
                blamed = (found.units[at], found.names[at])
                size = (found.influence[at], found.standard_error[at])
                checked = _check(correct[lost], correct[control], correct[lost_units == 0])
                rows.append((failure, place + 1, *blamed, *size, *checked))
    return pd.DataFrame(rows, columns=columns)


def _kept(masks: list[bytes], units: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unpack masks one by one, as those of examples are long.

    Returns:
        Whether each mask keeps the wanted units, bool (masks, *wanted.shape), and how many units it
        lost, int64 (masks,).
    """
    kept, lost = np.zeros((len(masks), *wanted.shape), bool), np.zeros(len(masks), np.int64)
    for index, packed in enumerate(masks):
        mask = unpack([packed], units)[0]
        kept[index], lost[index] = mask[wanted], units - mask.sum()
    return kept, lost


def _check(
    removed: np.ndarray, control: np.ndarray, whole: np.ndarray
) -> tuple[int | float | bool | None, ...]:
    """Compare which models of the three kinds are right; see `list_failures`."""
    kinds = (removed, control, whole)
    shares = [float(correct.mean()) if len(correct) else None for correct in kinds]
    corrected = None
    if min(map(len, kinds)) >= LEAST_MODELS:
        corrected = bool(removed.mean() > 0.5 >= max(control.mean(), whole.mean()))
    counted = [value for kind in zip(map(len, kinds), shares, strict=True) for value in kind]
    return (*counted, corrected)


def _row_groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    file = open_table(path)
    for group in range(file.num_row_groups):
        with damage_named(path):
            rows = file.read_row_group(group, columns)
        yield rows
