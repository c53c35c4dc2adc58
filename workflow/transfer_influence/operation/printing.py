"""What people read of a study: how far it is, and what it will take."""

import datetime
from collections.abc import Sequence

import numpy as np

from transfer_influence.config.study import PLURAL, Study
from transfer_influence.counterfactual.power import smallest_difference, smallest_effect
from transfer_influence.counterfactual.replicates import LEAST_REPLICATES
from transfer_influence.operation.census import StageProgress
from transfer_influence.operation.costs import Cost, sidecar_of
from transfer_influence.operation.estimate import Disk, StagePlan, by_rule, disk, wall_time
from transfer_influence.operation.pace import pace, seconds_left, seconds_left_in_all
from transfer_influence.results import RULES
from transfer_influence.subsets import balanced_spread, block_models

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


def plan_table(study: Study, plans: Sequence[StagePlan], at_once: Sequence[int]) -> str:
    """Return what a study will take, as lines to print.

    Args:
        study: the study.
        plans: of all its jobs.
        at_once: numbers of jobs at a time to give the wall time for.

    Raises:
        UserError: a data set has not been converted.
    """
    rules = by_rule(plans)
    names = ("jobs", "models", "hours")
    jobs = [("rule", *names, *(f"{name} left" for name in names), "a job", "on", "known from")]
    jobs += [_jobs(rule, of_rule) for rule, of_rule in rules.items()]
    for unit in sorted({plan.unit for plan in plans}, reverse=True):
        jobs.append(_jobs(f"all on {unit}", [plan for plan in plans if plan.unit == unit]))
    whole = [np.concatenate([plan.seconds for plan in of_rule]) for of_rule in rules.values()]
    left = [np.concatenate([plan.seconds_left for plan in of_rule]) for of_rule in rules.values()]
    times = [("jobs at a time", "wall time", "left")]
    times += [
        (str(number), duration(wall_time(whole, number)), duration(wall_time(left, number)))
        for number in at_once
    ]
    sizes = disk(study, plans)
    total = Disk("in all", sum(each.whole for each in sizes), sum(each.left for each in sizes))
    files = [("disk", "all", "left")]
    files += [(each.files, size(each.whole), size(each.left)) for each in [*sizes, total]]
    return "\n\n".join(
        [
            *_blocks(study),
            *_power(study),
            columns(jobs, right=set(range(1, 8))),
            columns(times, right={0, 1, 2}),
            columns(files, right={1, 2}),
        ]
    )


def _blocks(study: Study) -> list[str]:
    """Say what a block of balanced subsets is, and how many the models of a study are."""
    if study.source.subset.sampling != "balanced":
        return []
    unit = study.source.subset.unit
    units = sidecar_of(study, study.source.dataset).units(unit)
    block, spread = block_models(units), balanced_spread(units)
    whole, rest = divmod(study.models, block)
    sizes = f"{units / 2:,.1f} ± {spread:.1f}" if spread else f"{units // 2:,}"
    said = f"balanced subsets: {sizes} {PLURAL[unit]} each; a block is {block:,} models, and "
    if not rest:
        return [f"{said}models: {study.models:,} are {whole} whole block{'s' if whole > 1 else ''}"]
    return [
        f"{said}models: {study.models:,} are not whole blocks, so difference_in_means has wide "
        f"standard errors;\nset it to {(whole + 1) * block:,}"
        + (f" or {whole * block:,}" if whole else "")
    ]


def _power(study: Study) -> list[str]:
    """Say what the models and replicates of a study can show, in 80 % of studies."""
    subset, said = study.source.subset, []
    if study.estimates:
        units = sidecar_of(study, study.source.dataset).units(subset.unit)
        share = subset.size(units) / units
        effect = smallest_effect(study.models, units, share, subset.sampling)
        noise = "outcome between models"
        if subset.sampling == "balanced":
            noise += f", less what the {PLURAL[subset.unit]} explain"
        if np.isfinite(effect):
            said.append(
                f"of a single {subset.unit}, an influence of {effect:.2g} standard deviations of "
                f"the {noise}"
            )
    plan = study.counterfactuals
    if plan and plan.counts != [0]:
        points = sum(count > 0 for count in plan.counts)
        difference = smallest_difference(plan.replicates, points)
        if np.isfinite(difference):
            said.append(
                f"of a removal, a difference of {difference:.2g} standard deviations of the "
                f"difference between two replicates with equal seeds"
            )
        else:
            said.append(f"of a removal, nothing: a test needs {LEAST_REPLICATES} replicates")
    return ["\n".join(["can be shown, with a power of 80 %:", *said])] if said else []


def title(stage: StageProgress) -> str:
    """Return what people call a stage."""
    words = [RULES[stage.group.rule].makes]
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


def size(count: float) -> str:
    """Return a number of bytes in its largest unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


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


def _jobs(name: str, plans: Sequence[StagePlan]) -> tuple[str, ...]:
    """Return a line of the table of jobs, for some stages together."""
    models = sum(plan.models for plan in plans)
    left = sum(plan.models_left for plan in plans)
    known = [plan.cost for plan in plans if plan.cost]
    seconds = np.concatenate([plan.seconds for plan in plans])
    return (
        name,
        f"{sum(len(plan.group.jobs) for plan in plans):,}",
        f"{models:,}" if models else "",
        _hours(seconds.sum()) if known else NOTHING,
        f"{sum(plan.jobs_left for plan in plans):,}",
        f"{left:,}" if models else "",
        _hours(sum(plan.seconds_left.sum() for plan in plans)) if known else NOTHING,
        duration(seconds.mean()) if known else "",
        plans[0].unit,
        _sources(known),
    )


def _sources(costs: Sequence[Cost]) -> str:
    """Say how costs are known."""
    past_jobs = sum(cost.past_jobs for cost in costs)
    calibrated = {cost.device for cost in costs if not cost.past_jobs}
    said = [f"{past_jobs:,} past job{'s' if past_jobs > 1 else ''}"] if past_jobs else []
    return ", ".join([*said, *(f"calibration on {device}" for device in sorted(calibrated))])


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.{1 if hours >= 10 else 3}f}"


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
    lines = [("", *(RULES[rule].makes for rule in rules))]
    for transfer in dict.fromkeys(stage.group.transfer for stage in stages):
        states = [_state(stage) for stage in stages if stage.group.transfer == transfer]
        lines.append((", ".join(transfer or ()), *states))
    return lines


def _state(stage: StageProgress) -> str:
    if stage.is_done:
        return "done"
    return f"{stage.done} of {stage.planned}" if stage.done else NOTHING
