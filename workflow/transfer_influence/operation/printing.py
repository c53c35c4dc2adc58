"""What people read of a study that runs."""

import datetime
from collections.abc import Sequence

from transfer_influence.operation.census import StageProgress
from transfer_influence.operation.jobs import RULES
from transfer_influence.operation.pace import pace, seconds_left, seconds_left_in_all

DAY = 86400.0
NOTHING = "–"


def progress_table(stages: Sequence[StageProgress], now: float) -> str:
    """Return how far a study is, as lines to print.

    Args:
        stages: the census.
        now: seconds since the epoch.
    """
    training = [stage for stage in stages if stage.group.models]
    models: list[tuple[str, ...]] = [("models", "done", "planned", "%", "an hour", "expected end")]
    models += [_models(title(stage), [stage], seconds_left(stage, now), now) for stage in training]
    models.append(_models("all models", training, seconds_left_in_all(training, now), now))
    others = [stage for stage in stages if not stage.group.models]
    single = [f"{title(stage)} {_state(stage)}" for stage in others if stage.group.transfer is None]
    return "\n\n".join(
        [
            columns(models, right={1, 2, 3, 4}),
            columns(_steps([stage for stage in others if stage.group.transfer]), right=set()),
            "; ".join(single),
        ]
    )


def title(stage: StageProgress) -> str:
    """Return what people call a stage."""
    words = [RULES[stage.group.rule]]
    if stage.group.transfer:
        words.append(", ".join(stage.group.transfer))
    return ": ".join(words)


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    minutes, hours, days = (round(seconds / unit) for unit in (60, 3600, DAY))
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{hours // 24} d {hours % 24} h" if days < 30 else f"{days} d"


def columns(rows: Sequence[Sequence[str]], right: set[int]) -> str:
    """Return rows of cells as aligned lines; the columns in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _models(
    name: str, stages: Sequence[StageProgress], left: float | None, now: float
) -> tuple[str, ...]:
    """Return a line of the table of models, for some stages together."""
    done = sum(stage.done for stage in stages)
    planned = sum(stage.planned for stage in stages)
    counts = f"{done:,}", f"{planned:,}", str(100 * done // planned)
    if all(stage.is_done for stage in stages):
        return name, *counts, "", "done"
    recent = pace(stages, now)
    rate = NOTHING if recent is None else _rate(recent.rate * 3600)
    return name, *counts, rate, NOTHING if left is None else _end(left, now)


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _end(left: float, now: float) -> str:
    today = datetime.datetime.fromtimestamp(now)
    end = datetime.datetime.fromtimestamp(now + left)
    day = "" if end.date() == today.date() else f"{end:%a %d %b} "
    return f"{day}{end:%H:%M}, in {duration(left)}"


def _steps(stages: Sequence[StageProgress]) -> list[tuple[str, ...]]:
    """Return a table of what follows from the models: a line a target and mode."""
    rules = dict.fromkeys(stage.group.rule for stage in stages)
    lines = [("", *(RULES[rule] for rule in rules))]
    for transfer in dict.fromkeys(stage.group.transfer for stage in stages):
        states = [_state(stage) for stage in stages if stage.group.transfer == transfer]
        lines.append((", ".join(transfer or ()), *states))
    return lines


def _state(stage: StageProgress) -> str:
    if stage.is_done:
        return "done"
    return f"{stage.done} of {stage.planned}" if stage.done else NOTHING
