"""Which source classes help and hurt most, and which help one target and hurt another."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from transfer_influence.config.study import Mode
from transfer_influence.errors import UserError
from transfer_influence.influence.ranking import RANKED
from transfer_influence.outcomes.tables import read_table, write_table

SIDE = 20  # source classes listed at either end of a ranking


def write_extremes(ranking: Path, path: Path, provenance: str) -> None:
    """Write the 20 most helpful and the 20 most harmful source classes, each once.

    Columns: those of the ranking.
    """
    rows = read_table(ranking, ["rank", *RANKED]).sort_by("rank")
    ends = np.unique(np.r_[: min(SIDE, len(rows)), max(0, len(rows) - SIDE) : len(rows)])
    write_table(rows.take(pa.array(ends)), path, provenance)


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
    tables = [read_table(ranking, RANKED).sort_by("unit") for ranking in rankings]
    for ranking, table in zip(rankings, tables, strict=True):
        if not table.select(["unit", "name"]).equals(tables[0].select(["unit", "name"])):
            raise UserError(
                f"{ranking}: ranks other source classes than {rankings[0]}; estimate the "
                f"influences again."
            )
    found = pd.DataFrame({name: tables[0][name].to_pandas() for name in ("unit", "name")})
    for (target, mode), table in zip(transfers, tables, strict=True):
        known = pd.array(table["significant"].to_pylist(), dtype="boolean")
        found[f"{target}_{mode}"] = table["influence"].to_numpy()
        found[f"{target}_{mode}_significant"] = known
    found["opposed"] = _opposed(found, transfers)
    found["opposition"] = _opposition(found, transfers)
    found = found.assign(first=found["opposed"].fillna(False))
    found = found.sort_values(["first", "opposition", "unit"], ascending=[False, False, True])
    found = found.drop(columns="first")
    write_table(pa.Table.from_pandas(found, preserve_index=False), path, provenance)


def _opposed(found: pd.DataFrame, transfers: list[tuple[str, Mode]]) -> pd.Series:
    """Return whether a class helps one target and hurts another; unknown if it may."""
    nothing = pd.Series(False, found.index, "boolean")
    helps = {target: nothing for target, _ in transfers}
    hurts = dict(helps)
    for target, mode in transfers:
        influence, known = found[f"{target}_{mode}"], found[f"{target}_{mode}_significant"]
        helps[target] = helps[target] | (known & (influence > 0))
        hurts[target] = hurts[target] | (known & (influence < 0))
    opposed = nothing
    for one, other in permutations(helps, 2):
        opposed = opposed | (helps[one] & hurts[other])
    return opposed


def _opposition(found: pd.DataFrame, transfers: list[tuple[str, Mode]]) -> pd.Series:
    gains: dict[str, list[np.ndarray]] = {}
    for target, mode in transfers:
        influence = found[f"{target}_{mode}"].to_numpy()
        gains.setdefault(target, []).append(influence / (influence.std() or 1.0))
    most = {target: np.max(values, axis=0) for target, values in gains.items()}
    least = {target: np.min(values, axis=0) for target, values in gains.items()}
    pairs = [np.minimum(most[one], -least[other]) for one, other in permutations(gains, 2)]
    return pd.Series(np.max(pairs, axis=0) if pairs else np.nan, found.index)
