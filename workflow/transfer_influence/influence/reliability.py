"""How far the influences of a study can be relied on, and how many models would be enough."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import f

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.influence.correlation import (
    jackknifed_intervals,
    rank_correlation,
    rank_correlations,
)
from transfer_influence.influence.estimation import make_estimator, room_for, wanted
from transfer_influence.influence.estimators import (
    DifferenceInMeans,
    Estimator,
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
from transfer_influence.subsets import block_models

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
    - `reliability`: what that predicts for two parts together, of `models` models (Spearman-Brown);
      of balanced subsets, what the standard errors tell, with its 95 % interval: see
      `balanced_reliability`;
    - `models_needed`: the number of models that predicts a reliability of 0.9, from all `models`;
    - `linear_datamodeling_score`: rank correlation, over `models` held-out models, between the
      outcome that the influences predict and the measured one, with its 95 % interval; on the whole
      target, and on each example;
    - `mean_linear_datamodeling_score`: the mean of the scores on single examples, with its 95 %
      interval, which is how much it would differ with other held-out models.

    Influences that are all the same, as those of a `lasso` that leaves out all classes, count as a
    correlation of 0 with any others, and so do the outcomes that they predict. A reliability is 0
    where parts do not agree. Values are null where they are not defined: there are too few models
    for them, all held-out models have the same outcome, or the reliability that `models_needed`
    starts from is not above 0.

    Raises:
        UserError: see `make_estimator`; or scores of single examples do not fit into memory.
    """
    memory = room_for(memory_gb)
    estimator = make_estimator(stage, data, memory)
    measures = list(reliability_curve(data, estimator, stage.seed))
    if data.design == "balanced" and stage.estimator != "lasso":
        measures = [measure for measure in measures if measure.statistic == "split_half"]
        measures += balanced_reliability(data, memory)
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


def reliability_curve(data: Measurements, estimator: Estimator, seed: int) -> Iterator[Measure]:
    """Yield split-half correlations and reliabilities at halves, quarters, … of the models."""
    rng = generator(seed, "reliability")
    groups = len(np.unique(data.groups))
    together = len(data) // groups
    size, needed = groups // 2, np.nan
    while size * together >= LEAST_PART:
        first, second = disjoint(data, size, DRAWS, rng)
        one, other = (
            np.concatenate(list(estimator.resampled(part, same_penalty=False)), axis=1)
            for part in (first, second)
        )
        found = [rank_correlation(*pair) for pair in zip(one, other, strict=True)]
        mean, models = float(np.mean(found)), size * together
        several = np.ptp(found) > 0  # two blocks are split in one way only
        ends = np.quantile(found, [0.025, 0.975]) if several else (np.nan, np.nan)
        yield Measure("split_half", models, mean, *ends)
        yield Measure("reliability", 2 * models, spearman_brown(mean, 2))
        if size == groups // 2:
            needed = models_needed(spearman_brown(mean, 2), 2 * models)
        size //= 2
    yield Measure("models_needed", len(data), needed)


def balanced_reliability(data: Measurements, memory: float) -> Iterator[Measure]:
    """Yield the reliability of influences from balanced subsets, and the models that 0.9 takes.

    It is the share of the variance of the estimates over classes that is not due to their errors,
    whose variance the residuals tell: *1 - 1/F* of an analysis of variance (McGraw & Wong 1996,
    ICC(C, k)). The intervals are those of the F-distribution, for normal effects and noise.
    Halves need not be compared, which a single block does not have. Ridge only shrinks the
    differences in means of such subsets, all by the same share, so it is as reliable.
    """
    fit = joined(DifferenceInMeans(data, memory).fit(Outcomes.of(data.whole)))
    order = block_models(data.classes) // 2 + 1
    error = fit.standard_error[0, 0] ** 2 * order / (order - 1)
    spread = fit.influence[:, 0].var(ddof=1)
    degrees = data.classes - 1, fit.freedom[0, 0]
    if spread == 0:
        yield Measure("reliability", len(data), np.nan)
        yield Measure("models_needed", len(data), np.nan)
        return
    # The error as a share of the spread; its ends are those of the reliability, the other way.
    shares = error / spread * np.array([1.0, *f.ppf([0.025, 0.975], *degrees)])
    value, high, low = np.maximum(1 - shares, 0.0)
    yield Measure("reliability", len(data), value, low, high)
    needed, fewest, most = (models_needed(each, len(data)) for each in (value, high, low))
    yield Measure("models_needed", len(data), needed, fewest, most)


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
