"""How fast a study runs, and when it will be done, from the times at which models were finished."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transfer_influence.operation.census import StageProgress

RECENT = 3600.0  # seconds that a rate looks back,
ENOUGH = 10  # or further, until it has seen this many models
PAUSE = 600.0  # seconds, on top of the time of three models, in which a running study does nothing


@dataclass(frozen=True)
class Pace:
    """How fast models come, of late.

    Attributes:
        rate: models a second.
        jobs: mean number of jobs that trained them side by side.
    """

    rate: float
    jobs: float


def pace(stages: Sequence[StageProgress], now: float) -> Pace | None:
    """Return the recent pace of some stages together; None if nothing has happened of late.

    The time counted begins at the end of the model before the first one counted or, after a pause,
    with the beginning of the first one. It ends with the last one, unless the next is overdue.

    Args:
        stages: of which models were finished.
        now: seconds since the epoch.
    """
    moments = np.concatenate([np.empty(0), *(stage.moments for stage in stages)])
    if not len(moments):
        return None
    seconds = np.concatenate(
        [np.full(len(stage.moments), stage.model_seconds or 0.0) for stage in stages]
    )
    order = np.argsort(moments, kind="stable")
    moments, seconds = moments[order], seconds[order]
    pause = PAUSE + 3 * seconds.max()
    if now - moments[-1] > pause:
        return None
    pauses = np.flatnonzero(np.diff(moments) > pause)
    start = int(pauses[-1]) + 1 if len(pauses) else 0
    in_time = int(np.searchsorted(moments, now - RECENT))
    first = max(start, min(in_time, len(moments) - ENOUGH))
    begin = moments[first - 1] if first > start else moments[first] - seconds[first]
    end = max(moments[-1], now - seconds[-1])
    return Pace((len(moments) - first) / (end - begin), seconds[first:].sum() / (end - begin))


def seconds_left(stage: StageProgress, now: float) -> float | None:
    """Return the seconds until a stage is done at its recent pace; None if there is none."""
    recent = pace([stage], now)
    return (stage.planned - stage.done) / recent.rate if recent else None


def seconds_left_in_all(stages: Sequence[StageProgress], now: float) -> float | None:
    """Return the seconds until all stages are done, if as many jobs run as have run of late.

    A stage that has not begun is taken to cost what its like does: retraining what training did.
    None where nothing runs, or nothing is like a stage that has not begun.
    """
    recent = pace(stages, now)
    if recent is None:
        return None
    work = 0.0
    for stage in stages:
        seconds = stage.model_seconds or _seconds_of_like(stage, stages)
        if stage.done < stage.planned and seconds is None:
            return None
        work += (stage.planned - stage.done) * (seconds or 0.0)
    return work / recent.jobs


def _seconds_of_like(stage: StageProgress, stages: Sequence[StageProgress]) -> float | None:
    likes = {"counterfactual_source": "train_sources", "counterfactual_transfer": "transfer"}
    group = stage.group
    return next(
        (
            other.model_seconds
            for other in stages
            if (other.group.rule, other.group.transfer) == (likes.get(group.rule), group.transfer)
        ),
        None,
    )
