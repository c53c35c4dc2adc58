"""How far the influences of a study can be relied on, and how many models would be enough."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.special import fdtri

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.hadamard import smallest_order
from transfer_influence.influence.correlation import (
    jackknifed_intervals,
    rank_correlation,
    rank_correlations,
)
from transfer_influence.influence.estimation import make_estimator, room_for, wanted
from transfer_influence.influence.estimators import (
    Estimator,
    Fit,
    joined,
    need_memory,
)
from transfer_influence.influence.held_out import (
    disjoint,
    generator,
    split,
    without_each_part,
)
from transfer_influence.influence.measurements import CHUNK, Measurements, Outcomes
from transfer_influence.influence.prophecy import models_needed, spearman_brown
from transfer_influence.outcomes.tables import write_table

DRAWS = 20  # pairs of disjoint parts at each number of models
LEAST_PART = 8  # models in a part
JACKKNIFE_PARTS = 20  # of the held-out models; each ranks the outcomes on all examples once more
STRIP = 1024  # columns at a time


@dataclass(frozen=True)
class Measure:
    """One row of the table; `value`, `low` and `high` are NaN where they are not defined."""

    statistic: str
    models: int
    value: float
    low: float = np.nan
    high: float = np.nan
    example: int | None = None


def write_reliability(
    data: Measurements, stage: InfluenceStage, memory_gb: float, path: Path, provenance: str
) -> None:
    """Measure how reliable the influences are, and write one row a measure.

    Columns: `statistic`, `models`, `example` (null for the whole target), `value`, `low`, `high`.
    The statistics are

    - `split_half`: rank correlation, over source classes, between influences on the whole target
      from two parts of `models` models each; the mean of 20 draws, and the range of 95 % of them;
    - `reliability`: the correlation that is expected with a second study of as many models. Of all
      models, what the standard errors tell, with its 95 % interval (see `estimated_reliability`);
      of fewer, and by `lasso`, what parts predict for two of them together (Spearman-Brown);
    - `models_needed`: the number of models that predicts a reliability of 0.9, from all `models`,
      with its 95 % interval; `high` is null where any number may be too few;
    - `linear_datamodeling_score`: rank correlation, over `models` held-out models, between the
      outcome that the influences predict and the measured one, with its 95 % interval; on the whole
      target, and on each example;
    - `mean_linear_datamodeling_score`: the mean of the scores on single examples, with its 95 %
      interval, which is how much it would differ with other held-out models.

    Influences that are all the same, as those of a `lasso` that leaves out all classes, count as a
    correlation of 0 with any others, and so do the outcomes that they predict. A reliability is 0
    where parts do not agree. Values are null where they are not defined: there are too few models
    for them, all held-out models have the same outcome, or the reliability that `models_needed`
    starts from is not above 0 or has no interval, as that of `lasso`.

    Raises:
        UserError: see `make_estimator`; or scores of single examples do not fit into memory.
    """
    memory = room_for(memory_gb)
    estimator = make_estimator(stage, data, memory)
    whole = joined(estimator.fit(Outcomes.of(data.whole)))
    measures = list(reliability_curve(data, estimator, whole, stage.seed))
    measures += linear_datamodeling_scores(data, stage, memory)
    columns = {
        "statistic": pa.array([measure.statistic for measure in measures]),
        "models": pa.array([measure.models for measure in measures], pa.int64()),
        "example": pa.array([measure.example for measure in measures], pa.int64()),
    }
    for name in ("value", "low", "high"):
        values = [getattr(measure, name) for measure in measures]
        columns[name] = pa.array(values, pa.float64(), from_pandas=True)
    write_table(pa.table(columns), path, provenance)


def reliability_curve(
    data: Measurements, estimator: Estimator, whole: Fit, seed: int
) -> Iterator[Measure]:
    """Yield split-half correlations and reliabilities, and the models for a reliability of 0.9.

    Args:
        data: the models.
        estimator: of their influences.
        whole: its influences on the whole target.
        seed: of the study.
    """
    found = estimated_reliability(data, whole)
    for half in split_halves(data, estimator, seed):
        yield half
        predicted = Measure("reliability", 2 * half.models, spearman_brown(half.value, 2))
        if found is None:
            found = predicted
        elif predicted.models < len(data):
            yield predicted
    found = found or Measure("reliability", len(data), np.nan)
    if np.isfinite(found.value):
        yield found
    # Without an interval the number would say too much: halves of one study tell it very roughly.
    ends = (found.value, found.high, found.low) if np.isfinite(found.low) else (np.nan,) * 3
    needed, fewest, most = (models_needed(each, found.models) for each in ends)
    yield Measure("models_needed", len(data), needed, fewest, most)


def split_halves(data: Measurements, estimator: Estimator, seed: int) -> Iterator[Measure]:
    """Yield the correlations of influences from parts of a half, a quarter, … of the models."""
    rng = generator(seed, "reliability")
    groups = len(np.unique(data.groups))
    together = len(data) // groups
    size = groups // 2
    while size * together >= LEAST_PART:
        first, second = disjoint(data, size, DRAWS, rng)
        one, other = (
            np.concatenate(list(estimator.resampled(part, same_penalty=False)), axis=1)
            for part in (first, second)
        )
        found = [rank_correlation(*pair) for pair in zip(one, other, strict=True)]
        several = np.ptp(found) > 0  # two blocks are split in one way only
        ends = np.quantile(found, [0.025, 0.975]) if several else (np.nan, np.nan)
        yield Measure("split_half", size * together, float(np.mean(found)), *ends)
        size //= 2


def estimated_reliability(data: Measurements, whole: Fit) -> Measure | None:
    """Return the reliability that standard errors tell; None where there are none.

    It is the share of the variance of the estimates over classes that is not due to their errors:
    *1 - 1/F* of an analysis of variance (McGraw & Wong 1996, ICC(C, k)). The interval is that of
    the F-distribution, for normal effects and errors. It needs no halves, which would be uncertain
    and break up the blocks of balanced subsets.

    Args:
        data: the models.
        whole: influences on the whole target.
    """
    influence, errors = whole.influence[:, 0], whole.standard_error[:, 0]
    spread = influence.var(ddof=1)
    if np.isnan(errors).any() or spread == 0:
        return None
    # In balanced subsets the errors of the classes sum to zero, so they spread a little wider.
    wider = 1 + 1 / (smallest_order(data.classes) - 1) if data.design == "balanced" else 1.0
    noise = np.square(errors).mean() * wider
    degrees = data.classes - 1, np.median(whole.freedom[:, 0])
    # The errors' share of the spread; its ends are those of the reliability, the other way round.
    shares = noise / spread * np.array([1.0, *fdtri(*degrees, [0.025, 0.975])])
    value, high, low = np.maximum(1 - shares, 0.0)
    return Measure("reliability", len(data), value, low, high)


def linear_datamodeling_scores(
    data: Measurements, stage: InfluenceStage, memory: float
) -> Iterator[Measure]:
    """Yield the score on the whole target; where examples are not too many, on each, and the mean.

    The estimator sees none of the held-out models.
    """
    fitted, held_out = split(data.groups, stage.held_out, stage.seed)
    if len(fitted) < LEAST_PART or len(held_out) < 2:
        yield Measure("linear_datamodeling_score", len(held_out), np.nan)
        return
    judges, count = data.take(held_out), len(held_out)
    estimator = make_estimator(stage, data.take(fitted), memory)
    left = without_each_part(judges, JACKKNIFE_PARTS, generator(stage.seed, "jackknife"))
    predicted = _predicted(judges, estimator, Outcomes.of(data.whole[fitted]))
    (score,), without = _scores(predicted, judges.whole, left)
    ends = jackknifed_intervals(np.array([score]), without)[0]
    yield Measure("linear_datamodeling_score", count, score, *ends)
    if not wanted(data, stage.largest_table_gb)[1]:
        return
    # Predicted and measured outcomes, and copies of the parts at hand.
    needed = 18 * count * data.examples.columns
    need_memory("the score of single examples", 1.5 * needed, memory)
    part = data.take(fitted)
    predicted = _predicted(judges, make_estimator(stage, part, memory - needed), part.examples)
    measured = np.empty((count, data.examples.columns), np.float32)
    for models, outcomes in judges.examples.chunks():
        measured[models] = outcomes
    sums, defined = np.zeros((2, 1 + len(left)))  # of the scores; by all judges, and by those left
    for first in range(0, measured.shape[1], STRIP):
        strip = slice(first, first + STRIP)
        scores, without = _scores(predicted[:, strip], measured[:, strip], left)
        both = np.vstack([scores, without])
        sums += np.nansum(both, axis=1)
        defined += np.isfinite(both).sum(axis=1)
        intervals = jackknifed_intervals(scores, without)
        for offset, (value, (low, high)) in enumerate(zip(scores, intervals, strict=True)):
            example = first + offset
            yield Measure("linear_datamodeling_score", count, value, low, high, example)
    means = np.divide(sums, defined, out=np.full_like(sums, np.nan), where=defined > 0)
    ends = jackknifed_intervals(means[:1], means[1:, None])[0]
    yield Measure("mean_linear_datamodeling_score", count, means[0], *ends)


def _predicted(judges: Measurements, estimator: Estimator, outcomes: Outcomes) -> np.ndarray:
    """Return outcomes as influences predict them, but for a constant: (models, columns)."""
    predicted = np.zeros((len(judges), outcomes.columns))
    first = 0
    for fit in estimator.fit(outcomes):
        units = slice(first, first + len(fit.influence))
        influence = np.nan_to_num(fit.influence)  # a class that the fitted models say nothing of
        for start in range(0, len(judges), CHUNK):
            models = np.arange(start, min(start + CHUNK, len(judges)))
            predicted[models] += judges.masks.rows(models, units) @ influence
        first = units.stop
    return predicted


def _scores(
    predicted: np.ndarray, measured: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each column; NaN where all models measured the same.

    Args:
        predicted: outcomes, (models, columns).
        measured: outcomes, (models, columns).
        left: models that are left when some are left out, bool (parts, models).

    Returns:
        The scores (columns,), and those of the models that are left (parts, columns).
    """

    def scores(kept: np.ndarray | slice) -> np.ndarray:
        outcomes = measured[kept]
        found = rank_correlations(predicted[kept], outcomes)
        return np.where(np.ptp(outcomes, axis=0) > 0, found, np.nan)

    return scores(slice(None)), np.array([scores(kept) for kept in left])
