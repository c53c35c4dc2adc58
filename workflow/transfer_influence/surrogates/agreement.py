"""Surrogates held against a study: do they say what the influences say, and what do they cost?"""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.special import ndtri, stdtrit

from transfer_influence.config.stages import AgreementStage, InfluenceStage
from transfer_influence.config.study import Budget
from transfer_influence.counterfactual.curves import areas
from transfer_influence.counterfactual.replicates import mean_and_ends
from transfer_influence.errors import UserError
from transfer_influence.influence.correlation import (
    jackknifed_intervals,
    rank_correlation,
    rank_correlations,
)
from transfer_influence.influence.estimation import make_estimator, room_for
from transfer_influence.influence.estimators import joined
from transfer_influence.influence.held_out import generator, split, without_each_part
from transfer_influence.influence.intervals import COVERAGE
from transfer_influence.influence.measurements import Measurements, Outcomes
from transfer_influence.influence.reliability import JACKKNIFE_PARTS, LEAST_PART
from transfer_influence.outcomes.tables import read_table, write_table
from transfer_influence.surrogates.costs import Costs

LEAST_PARTS = 8  # of a jackknife, for an interval of a difference
INFLUENCES = "influences"  # what the row of the study itself is called


def write_agreement(
    stage: AgreementStage,
    scores: Sequence[Path],
    influences: Path,
    reliability: Path,
    data: Measurements,
    retrained: Path | None,
    costs: Costs,
    memory_gb: float,
    output: Path,
    provenance: str,
) -> None:
    """Write one row for the influences themselves and one a surrogate.

    Columns, each estimate with the ends of its 95 % interval as `…_low` and `…_high`:
    - `surrogate`: its name, `influences` for those of the study;
    - `correlation`: Spearman's, over classes, with the estimated influences; of the influences the
      one that is expected with a second study of as many models, which is their reliability;
    - `corrected`: the same divided by the root of the reliability, for what the correlation would
      be with influences without error (Spearman 1904); of the influences the root itself. Null
      where the interval of the reliability reaches 0, as it divides by nothing then;
    - `linear_datamodeling_score`: Spearman's, over held-out models, between the sum of the scores
      of a model's classes and its outcome; of the influences, which are estimated from the other
      models, that of their predictions; `against_influences`: minus that of the influences;
    - `area`, where the study removes classes in the order of the surrogate (of the influences
      `top`): between its curve and that of random removals, in accuracy × classes, as
      `curves.summary_of` has it: the further below 0 the better; `area_against_influences`: minus
      that of `top`;
    - `hours`: wall time of the jobs that it takes, of GPUs or CPUs as `device` says; 0 for a list;
      `corrected_per_hour`: `corrected` by `hours`.

    Null is what is not defined: there are too few models, or the study does not retrain.

    Args:
        stage: which surrogates, and how influences are estimated.
        scores: their tables.
        influences: table of the influences.
        reliability: table of their reliability.
        data: of the study's models.
        retrained: table of the retrained models, if there are any.
        costs: what the study and its surrogates have taken.
        memory_gb: to get by with.
        output: Parquet file to write.
        provenance: of the output.

    Raises:
        UserError: a surrogate scores other classes than the study.
    """
    ranked = {
        name: by_unit(path, data.classes)
        for name, path in zip(stage.surrogates, scores, strict=True)
    }
    estimated = by_unit(influences, data.classes)
    rows = pd.DataFrame({"surrogate": [INFLUENCES, *ranked]})
    measured = measured_reliability(reliability)
    rows = rows.join(correlations(estimated, list(ranked.values()), measured))
    rows = rows.join(datamodeling_scores(data, list(ranked.values()), stage.influence, memory_gb))
    models = None if retrained is None else read_table(retrained).to_pandas()
    rows = rows.join(curve_areas(models, list(ranked)))
    rows["hours"] = [costs.study, *(costs.of(name) for name in ranked)]
    rows["corrected_per_hour"] = rows["corrected"] / rows["hours"].where(rows["hours"] > 0)
    devices = [None if name in stage.lists else costs.device for name in ranked]
    rows["device"] = [costs.device, *devices]
    write_table(pa.Table.from_pandas(rows, preserve_index=False), output, provenance)


def by_unit(table: Path, classes: int) -> np.ndarray:
    """Return influences or scores in the order of the classes, float64 (classes,).

    Raises:
        UserError: the table is of other classes.
    """
    rows = read_table(table, ["unit", "influence"]).sort_by("unit")
    if rows["unit"].to_pylist() != list(range(classes)):
        raise UserError(
            f"{table}: scores {len(rows)} classes, but the source has {classes}; delete it and "
            f"run the workflow again."
        )
    return rows["influence"].to_numpy()


def measured_reliability(table: Path) -> np.ndarray:
    """Return the reliability of the influences by all models, and the ends of its interval."""
    rows = read_table(table).to_pandas()
    rows = rows[rows["statistic"] == "reliability"].sort_values("models")
    columns = ["value", "low", "high"]
    return rows[columns].to_numpy(float)[-1] if len(rows) else np.full(3, np.nan)


def correlations(
    estimated: np.ndarray, scores: list[np.ndarray], reliability: np.ndarray
) -> pd.DataFrame:
    """Return rank correlations with the influences, as they are and corrected.

    Intervals are over classes, by Fisher's z (Bonett & Wright 2000), and do not know how uncertain
    the reliability is.
    """
    found = np.array([rank_correlation(estimated, each) for each in scores])
    error = np.sqrt((1 + found**2 / 2) / max(1, len(estimated) - 3))
    half = ndtri((1 + COVERAGE) / 2) * error
    inside = np.clip(found, -1 + 1e-12, 1 - 1e-12)
    ends = np.tanh(np.arctanh(inside) + np.array([[-1], [1]]) * half)
    values = np.column_stack([reliability, np.array([found, *ends])])
    known = reliability[1] > 0
    root = np.sqrt(reliability) if known else np.full(3, np.nan)
    corrected = np.column_stack([root, values[:, 1:] / root[0]])
    columns = [*with_ends("correlation"), *with_ends("corrected")]
    return pd.DataFrame(np.vstack([values, corrected]).T, columns=columns)


def datamodeling_scores(
    data: Measurements, scores: list[np.ndarray], stage: InfluenceStage, memory_gb: float
) -> pd.DataFrame:
    """Return how well each predicts the outcomes of held-out models, influences first.

    The held-out models are those by which the influences themselves are judged.
    """
    names = [*with_ends("linear_datamodeling_score"), *with_ends("against_influences")]
    fitted, held_out = split(data.groups, stage.held_out, stage.seed)
    if len(fitted) < LEAST_PART or len(held_out) < 2:
        return pd.DataFrame(np.nan, index=range(1 + len(scores)), columns=names)
    estimator = make_estimator(stage, data.take(fitted), room_for(memory_gb))
    fit = joined(estimator.fit(Outcomes.of(data.whole[fitted])))
    linear = np.column_stack([np.nan_to_num(fit.influence[:, 0]), *scores])
    judges = data.take(held_out)
    predicted = judges.masks.rows(np.arange(len(judges))) @ linear
    measured = np.broadcast_to(judges.whole, predicted.shape)
    found = rank_correlations(predicted, measured)
    parts = without_each_part(judges, JACKKNIFE_PARTS, generator(stage.seed, "jackknife"))
    without = np.array([rank_correlations(predicted[kept], measured[kept]) for kept in parts])
    against = jackknifed_differences(found - found[0], without - without[:, :1])
    against[0] = np.nan
    return pd.DataFrame(
        np.column_stack([found, jackknifed_intervals(found, without), against]), columns=names
    )


def jackknifed_differences(found: np.ndarray, without: np.ndarray) -> np.ndarray:
    """Return differences of correlations with their 95 % intervals, float64 (n, 3).

    By the pseudo-values of a grouped jackknife (Tukey 1958), so paired: both correlations are of
    the same models.

    Args:
        found: from all models, float64 (n,).
        without: without each part of the models, float64 (parts, n).
    """
    parts = len(without)
    pseudo = parts * found - (parts - 1) * without
    half = np.full(len(found), np.nan)
    if parts >= LEAST_PARTS:
        error = pseudo.std(axis=0, ddof=1) / np.sqrt(parts)
        half = stdtrit(parts - 1, (1 + COVERAGE) / 2) * error
    return np.column_stack([found, pseudo.mean(axis=0) - half, pseudo.mean(axis=0) + half])


def curve_areas(models: pd.DataFrame | None, names: list[str]) -> pd.DataFrame:
    """Return the areas between curves of retrained models; see `write_agreement`.

    Of curves by several budgets, those by epochs count.

    Args:
        models: see `summarize_counterfactual`; None if there are none.
        names: of the surrogates.
    """
    orders = ["top", *names]
    columns = [*with_ends("area"), *with_ends("area_against_influences")]
    if models is None:
        return pd.DataFrame(np.nan, index=range(len(orders)), columns=columns)
    there = [budget for budget in get_args(Budget) if (models["budget"] == budget).any()]
    models = models[models["budget"].isna() | models["budget"].isin(there[:1])]
    known = set(models["order"])
    rows = []
    for order in orders:
        row: list[float] = []
        for control in ("random", "top"):
            both = {order, control} <= known
            row += mean_and_ends(areas(models, order, control) if both else np.empty(0))
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def with_ends(name: str) -> list[str]:
    """Return the names of the columns of an estimate and its interval."""
    return [name, f"{name}_low", f"{name}_high"]
