"""Which source classes help and hurt most, and which help one target and hurt another."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer_influence.config.study import Mode
from transfer_influence.errors import UserError
from transfer_influence.influence.ranking import RANKED
from transfer_influence.outcomes.tables import read_table, write_table

SIDE = 20  # source classes listed at either end of a ranking


def list_extremes(ranking: Path) -> pa.Table:
    """Return the 20 most helpful and the 20 most harmful source classes, each once.

    Columns: those of the ranking.
    """
    rows = read_table(ranking, ["rank", *RANKED]).sort_by("rank")
    ends = np.unique(np.r_[: min(SIDE, len(rows)), max(0, len(rows) - SIDE) : len(rows)])
    return rows.take(pa.array(ends))


def compare_targets(
    rankings: list[Path], transfers: list[tuple[str, Mode]], path: Path, provenance: str
) -> None:
    """Write the influences of each source class on all targets.

    Classes that are opposed beyond doubt come first, those with more opposition before others.

    Columns: `unit`, `name`; for each (target, mode) `{target}_{mode}`, the influence, and
    `{target}_{mode}_significant`, null where the estimator does not know; `opposed`: whether the
    class helps one target and hurts another one, both significantly, in whatever modes; and
    `opposition`: the smaller one of its largest gain for one target and its largest harm to
    another, each in standard deviations of the influences of all classes. It is negative where a
    class does not pull two targets apart, and null where there is one target only.

    Args:
        rankings: tables of ranked classes.
        transfers: target and mode of each.
        path: Parquet file to write.
        provenance: of the output.

    Raises:
        UserError: the rankings are of different source classes.
    """
    first = read_table(rankings[0], ["unit", "name"]).sort_by("unit")
    columns: dict[str, Any] = {name: first[name] for name in first.column_names}
    influences, marks = [], []
    for ranking, (target, mode) in zip(rankings, transfers, strict=True):
        table = read_table(ranking, ["unit", "name", "influence", "significant"]).sort_by("unit")
        if not table.select(["unit", "name"]).equals(first):
            raise UserError(
                f"{ranking}: ranks other source classes than {rankings[0]}; estimate the "
                f"influences again."
            )
        influences.append(table["influence"].to_numpy())
        marks.append(table["significant"].combine_chunks())
        columns[f"{target}_{mode}"] = pa.array(influences[-1], from_pandas=True)
        columns[f"{target}_{mode}_significant"] = marks[-1]
    targets = [target for target, _ in transfers]
    opposed, opposition = _opposed(targets, influences, marks), _opposition(targets, influences)
    columns["opposed"] = opposed
    columns["opposition"] = pa.array(opposition, from_pandas=True)
    doubtful = ~opposed.fill_null(False).to_numpy(zero_copy_only=False)
    # Of equals the first unit is first; NaN are last.
    order = pa.array(np.lexsort((-opposition, doubtful)))
    write_table(pa.table(columns).take(order), path, provenance)


def _opposed(
    targets: list[str], influences: list[np.ndarray], marks: list[pa.BooleanArray]
) -> pa.BooleanArray:
    """Return whether a class helps one target and hurts another; null if it may."""
    nothing = pa.array(np.zeros(len(influences[0]), dtype=bool))
    helps = dict.fromkeys(targets, nothing)
    hurts = dict(helps)
    for target, influence, known in zip(targets, influences, marks, strict=True):
        for side, those in [(helps, influence > 0), (hurts, influence < 0)]:
            side[target] = pc.or_kleene(side[target], pc.and_kleene(known, pa.array(those)))
    opposed = nothing
    for one, other in permutations(helps, 2):
        opposed = pc.or_kleene(opposed, pc.and_kleene(helps[one], hurts[other]))
    return opposed


def _opposition(targets: list[str], influences: list[np.ndarray]) -> np.ndarray:
    """Return the opposition of each class, NaN where there is one target only."""
    most: dict[str, np.ndarray] = {}
    least: dict[str, np.ndarray] = {}
    for target, influence in zip(targets, influences, strict=True):
        scaled = influence / (influence.std() or 1.0)
        most[target] = np.maximum(most.get(target, scaled), scaled)
        least[target] = np.minimum(least.get(target, scaled), scaled)
    opposition = np.full(len(influences[0]), np.nan if len(most) < 2 else -np.inf)
    for one, other in permutations(most, 2):
        np.maximum(opposition, np.minimum(most[one], -least[other]), out=opposition)
    return opposition
