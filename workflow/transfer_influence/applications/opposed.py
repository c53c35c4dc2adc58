"""Which source classes pull targets apart: they help one and hurt another."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from transfer_influence.config.study import Mode
from transfer_influence.errors import UserError
from transfer_influence.influence.intervals import FALSE_DISCOVERIES, q_values, significant
from transfer_influence.outcomes.tables import read_table, write_table

JUDGED = ["influence", "p_value", "significant"]


def compare_targets(
    rankings: list[Path], transfers: list[tuple[str, Mode]], path: Path, provenance: str
) -> None:
    """Write the influences of each source class on all targets.

    Classes that are opposed come first, those with more opposition before others.

    Columns: `unit`, `name`; for each (target, mode) `{target}_{mode}`, the influence, and
    `{target}_{mode}_significant`, null where the estimator does not know; `opposed`: whether the
    class does more than the average class for one target and less for another, in whatever modes,
    at a false discovery rate of 5 % (`opposed_q_value` at most 0.05), null where the estimator
    does not know, see `opposed_p_values`; and `opposition`: the smaller one of its largest gain for
    one target and its largest harm to another, each in standard deviations of the influences of all
    classes. It is negative where a class does not pull two targets apart, and null where there is
    one target only.

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
    influences, p_values = [], []
    for ranking, (target, mode) in zip(rankings, transfers, strict=True):
        table = read_table(ranking, ["unit", "name", *JUDGED]).sort_by("unit")
        if not table.select(["unit", "name"]).equals(first):
            raise UserError(
                f"{ranking}: ranks other source classes than {rankings[0]}; estimate the "
                f"influences again."
            )
        influences.append(table["influence"].to_numpy())
        p_values.append(table["p_value"].to_numpy())
        columns[f"{target}_{mode}"] = pa.array(influences[-1], from_pandas=True)
        columns[f"{target}_{mode}_significant"] = table["significant"].combine_chunks()
    targets = [target for target, _ in transfers]
    q_value = q_values(opposed_p_values(targets, influences, p_values))
    opposition = _opposition(targets, influences)
    columns["opposed"] = significant(q_value)
    columns["opposed_q_value"] = pa.array(q_value, from_pandas=True)
    columns["opposition"] = pa.array(opposition, from_pandas=True)
    # Of equals the first unit is first; NaN are last.
    order = pa.array(np.lexsort((-opposition, ~(q_value <= FALSE_DISCOVERIES))))
    write_table(pa.table(columns).take(order), path, provenance)


def opposed_p_values(
    targets: list[str], influences: list[np.ndarray], p_values: list[np.ndarray]
) -> np.ndarray:
    """Return the p-value of each class that it does not pull two targets apart.

    It pulls a pair apart if it helps the one and hurts the other: of the two p-values the larger
    one counts (the intersection-union test, Berger 1982). Of the modes of a target and of the pairs
    the smallest p-value is chosen, which is corrected for (Bonferroni): by the number of modes, and
    by 2 (K − 1) for K targets. A class that truly pulls one target up, and none down, can err with
    any of K − 1 others, and the same holds for one that pulls a target down.

    Args:
        targets: name of the target of each column; its modes are columns of the same name.
        influences: float64 (classes,) of each column.
        p_values: of no influence, two-sided, float64 (classes,) of each column.

    Returns:
        float64 (classes,); NaN where a p-value is not known, 1 where there is one target only.
    """
    sides = {}
    for side in (1, -1):
        of_targets: dict[str, list[np.ndarray]] = {}
        for target, influence, p_value in zip(targets, influences, p_values, strict=True):
            one_sided = np.where(side * influence > 0, p_value / 2, 1 - p_value / 2)
            of_targets.setdefault(target, []).append(one_sided)
        sides[side] = {
            target: np.min(modes, axis=0) * len(modes) for target, modes in of_targets.items()
        }
    found = np.where(np.isfinite(sum(p_values)), 1.0, np.nan)
    chances = 2 * (len(sides[1]) - 1)
    for one, other in permutations(sides[1], 2):
        found = np.minimum(found, chances * np.maximum(sides[1][one], sides[-1][other]))
    return found


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
