"""What a study will take: jobs, hours and disk, of all of it and of what is left to do."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from transfer_influence.config.study import Study
from transfer_influence.influence.measurements import SCALARS
from transfer_influence.operation.census import StageProgress, census
from transfer_influence.operation.costs import (
    Cost,
    cost_of,
    dataset_of,
    measured_cost,
    sidecar_of,
    stage_name,
)
from transfer_influence.results import JobGroup, data_folder, job_groups


@dataclass(frozen=True)
class StagePlan:
    """What the jobs of one group take, in all and from now on.

    Attributes:
        progress: the jobs, and how many of them are done.
        cost: what they cost, None if that is not known.
    """

    progress: StageProgress
    cost: Cost | None

    @property
    def group(self) -> JobGroup:
        """The jobs."""
        return self.progress.group

    @property
    def models(self) -> int:
        """Models that the jobs train."""
        return self.group.models

    @property
    def jobs_left(self) -> int:
        """Jobs that are not done."""
        return len(self.group.jobs) - self.progress.finished_jobs

    @property
    def models_left(self) -> int:
        """Models that are not done."""
        return self.models - self.progress.done if self.models else 0

    @property
    def unit(self) -> str:
        """What the jobs run on: CPU or GPU."""
        return "CPU" if self.cost is None or self.cost.device == "cpu" else "GPU"

    @property
    def seconds(self) -> np.ndarray:
        """Wall time of each job, float64; empty if not known."""
        return np.empty(0) if self.cost is None else self.cost.seconds

    @property
    def seconds_left(self) -> np.ndarray:
        """Wall time of each job that is left, float64; empty if not known.

        What is done of unfinished jobs is shared out among all that are left.
        """
        if self.cost is None or not self.jobs_left:
            return np.empty(0)
        each = self.models / len(self.group.jobs)
        share = self.models_left / (self.jobs_left * each) if each else 1.0
        return np.full(self.jobs_left, self.cost.seconds.mean() * share)


@dataclass(frozen=True)
class Disk:
    """Bytes of some files, in all and still to be written."""

    files: str
    whole: float
    left: float


def stage_plans(study: Study) -> list[StagePlan]:
    """Return what each group of jobs takes, in the order in which the data flows.

    Raises:
        UserError: a calibration is damaged.
    """
    return [StagePlan(progress, cost_of(study, progress.group)) for progress in census(study)]


def stages_to_calibrate(study: Study) -> list[str]:
    """Return the names of the stages of which some training has not yet shown what it costs."""
    names = [
        stage_name(group)
        for group in job_groups(study)
        if group.models and measured_cost(study, group) is None
    ]
    return list(dict.fromkeys(names))


def by_rule(plans: Sequence[StagePlan]) -> dict[str, list[StagePlan]]:
    """Return the plans of each rule, in the order in which the data flows."""
    rules = defaultdict(list)
    for plan in plans:
        rules[plan.group.rule].append(plan)
    return dict(rules)


def wall_time(phases: Iterable[np.ndarray], at_once: int) -> float:
    """Return how long jobs take, in seconds, when so many of them run at once.

    Args:
        phases: wall times of the jobs of each phase, which begins when the one before has ended.
        at_once: how many jobs run at a time; whenever one ends, the longest waiting one begins.
    """
    whole = 0.0
    for seconds in phases:
        free = [0.0] * at_once
        for each in sorted(seconds, reverse=True):
            heapq.heapreplace(free, free[0] + each)
        whole += max(free)
    return whole


def disk(study: Study, plans: Sequence[StagePlan]) -> list[Disk]:
    """Return the bytes of all that is large, as far as costs are known.

    Raises:
        UserError: a data set has not been converted.
    """
    folders = (data_folder(study, name) for name in study.datasets)
    data = sum(path.stat().st_size for folder in folders for path in folder.glob("*"))
    sizes = {"data sets": np.array([float(data), 0.0])}  # whole, left
    rows = {plan.group.transfer: plan.cost for plan in plans if plan.group.rule == "transfer"}

    def add(files: str, each: float, count: int, left: int) -> None:
        sizes[files] = sizes.get(files, np.zeros(2)) + each * np.array([count, left])

    for plan in plans:
        if plan.cost and plan.models:
            add("weights", plan.cost.weights_bytes, plan.models, plan.models_left)
            add("outcomes", plan.cost.row_bytes, plan.models, plan.models_left)
        row = rows.get(plan.group.transfer)
        if row and plan.group.rule == "summarize":
            add("summaries", study.models * row.row_bytes, 1, plan.jobs_left)
        if plan.group.rule == "estimate_influence":
            add(
                "influences",
                influence_bytes(study, plan.group),
                len(plan.group.jobs),
                plan.jobs_left,
            )
    return [Disk(files, *map(float, size)) for files, size in sizes.items()]


def influence_bytes(study: Study, group: JobGroup) -> int:
    """Return the bytes of a table of influences: two float32 a source unit and target example.

    None where the table would be larger than wanted.

    Raises:
        UserError: a data set has not been converted.
    """
    if study.influence.outcome in SCALARS:
        return 0  # of the target as a whole
    units = sidecar_of(study, study.source.dataset).units(study.source.subset.unit)
    each = units * sidecar_of(study, dataset_of(study, group)).test_count * 2 * 4
    return each if each <= study.influence.largest_table_gb * 10**9 else 0
