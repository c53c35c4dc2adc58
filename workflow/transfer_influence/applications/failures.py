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
import pyarrow.compute as pc
from scipy.special import betaln

from transfer_influence.applications.blocks import leaders
from transfer_influence.applications.chance import Chance
from transfer_influence.influence.intervals import q_values, significant
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
        "proves": pa.bool_(),
        "predicted": pa.string(),
        "share_correct": pa.float64(),
        "place": pa.int32(),
        "unit": pa.int32(),
        "unit_name": pa.string(),
        "influence": pa.float32(),
        "standard_error": pa.float32(),
        "q_value": pa.float64(),
        "beyond_chance": pa.bool_(),
        "removed_models": pa.int32(),
        "removed_correct": pa.float64(),
        "control_models": pa.int32(),
        "control_correct": pa.float64(),
        "whole_models": pa.int32(),
        "whole_correct": pa.float64(),
        "p_value": pa.float64(),
        "corrected_q_value": pa.float64(),
        "corrected": pa.bool_(),
    }
)

# What is known of a culprit before all of them are judged.
JUDGED = ("beyond_chance", "corrected_q_value", "corrected")
FOUND = ["failure", *WRITTEN.names[WRITTEN.get_field_index("place") :]]
FOUND = [name for name in FOUND if name not in JUDGED]


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
    proves: np.ndarray,
    transfers: list[Path],
    sources: list[Path],
) -> pa.Table:
    """Return the target test examples that most models get wrong, and who is to blame.

    One row an example and culprit, of which there are at most 3; at most 200 examples, the worst
    first. Columns: `example` (index in the target's test split), `name`, `class`, and `proves`,
    whether it is one of those that prove the ranking; `predicted`, the most frequent wrong answer;
    `share_correct`, the share of models that are right; `place` (1 = pushes hardest the wrong way),
    `unit`, `unit_name`, `influence`, `standard_error` of the culprit, null where none is known, its
    `q_value` among all influences on single examples, and `beyond_chance`, whether that is at most
    5 %. Of the retrained models, three kinds, each with its number
    and the share of them that are right:
    - `removed_models`, `removed_correct`: lost this culprit and all those before it;
    - `control_models`, `control_correct`: lost as many units as one of these, but kept this one;
    - `whole_models`, `whole_correct`: lost nothing.
    `p_value`: of Fisher's exact test that the first are not right more often than the second, which
    says that this culprit does it, and not any removal; `corrected_q_value`: the same among all
    rows that have one. `corrected`: whether that is at most 5 %, and most of the first are right
    and not most of the others. All three are null where there are fewer than 3 models of a kind.

    Args:
        summary: outcomes of all models.
        influences: table of influences; without those on single examples, no culprits are known.
        examples: the target's `test.examples.parquet`.
        classes: names of the target's classes.
        proves: whether a test image proves the ranking, bool (examples,), see `TestImages`.
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
            "proves": proves[failed],
            "predicted": [classes[label] for label in wrong],
            "share_correct": share[failed],
        }
    )
    judged = judge(culprits(influences, failed, retrained))
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
        `list_failures` from `place` on but for those of `judge`.
    """
    units = open_table(influences).metadata.num_rows
    found = leaders(influences, "example", examples, CULPRITS, sign=-1)
    rows = []
    if found is not None:
        chance = Chance.of(influences, "example", side=-1)
        q_value = chance.q_values(found.influence, found.standard_error, found.freedom)
        kept, lost_units = _kept(retrained.masks, units, found.units)
        for failure in range(len(examples)):
            correct = retrained.is_correct[:, failure]
            lost = np.ones(len(correct), bool)
            for place in np.flatnonzero(found.influence[:, failure] < 0):
                at = place, failure
                lost = lost & ~kept[:, place, failure]
                control = kept[:, place, failure] & np.isin(lost_units, lost_units[lost])
                blamed = (found.units[at], found.names[at])
                known = (found.influence[at], found.standard_error[at], q_value[at])
                checked = _check(correct[lost], correct[control], correct[lost_units == 0])
                rows.append((failure, place + 1, *blamed, *known, *checked))
    return pd.DataFrame(rows, columns=FOUND)


def judge(culprits: pd.DataFrame) -> pd.DataFrame:
    """Say which culprits are beyond chance, and without which the retrained models are right.

    Args:
        culprits: see `culprits`.

    Returns:
        The same, with `beyond_chance`, `corrected_q_value` and `corrected`, see `list_failures`.
    """
    q_value = q_values(culprits["p_value"].to_numpy(np.float64))
    others = culprits[["control_correct", "whole_correct"]].max(axis=1)
    most = (culprits["removed_correct"] > 0.5) & (others <= 0.5)
    return culprits.assign(
        beyond_chance=significant(culprits["q_value"].to_numpy(np.float64)).to_pylist(),
        corrected_q_value=q_value,
        corrected=pc.and_(significant(q_value), pa.array(most, pa.bool_())).to_pylist(),
    )


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
) -> tuple[int | float | None, ...]:
    """Compare which models of the three kinds are right; see `list_failures`."""
    kinds = (removed, control, whole)
    shares = [float(correct.mean()) if len(correct) else None for correct in kinds]
    p_value = None
    if min(map(len, kinds)) >= LEAST_MODELS:
        p_value = more_often(removed.sum(), len(removed), control.sum(), len(control))
    counted = [value for kind in zip(map(len, kinds), shares, strict=True) for value in kind]
    return (*counted, p_value)


def more_often(hits: int, trials: int, other_hits: int, other_trials: int) -> float:
    """Return the one-sided p-value that hits are not more frequent than others.

    Fisher's exact test (Fisher 1935): the chance of as many hits or more among the trials, if all
    hits fell on any of both trials alike.
    """
    all_hits, all_trials = hits + other_hits, trials + other_trials
    counts = np.arange(hits, min(trials, all_hits) + 1)
    ways = _log_binomial(all_hits, counts)
    ways += _log_binomial(all_trials - all_hits, trials - counts)
    return float(min(1.0, np.exp(ways - _log_binomial(all_trials, trials)).sum()))


def _log_binomial(n: int, k: np.ndarray | int) -> np.ndarray:
    """Return the logarithm of the number of ways to choose k of n; minus infinity for k > n."""
    k = np.asarray(k)
    fits = k <= n
    chosen = np.where(fits, k, 0)
    return np.where(fits, -betaln(n - chosen + 1, chosen + 1) - np.log(n + 1), -np.inf)


def _row_groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    file = open_table(path)
    for group in range(file.num_row_groups):
        with damage_named(path):
            rows = file.read_row_group(group, columns)
        yield rows
