"""A study that grows until its influences are reliable: how far it is, and how to go on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from transfer_influence.config.settings import read_yaml
from transfer_influence.config.study import Study, read_study
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.influence.prophecy import models_needed, rounded
from transfer_influence.operation.costs import sidecar_of
from transfer_influence.operation.estimate import stage_plans
from transfer_influence.operation.printing import duration
from transfer_influence.outcomes.tables import read_table
from transfer_influence.results import RULES
from transfer_influence.subsets import block_models

GROWING = ("train_sources", "transfer")  # rules with more to do for more models


@dataclass(frozen=True)
class Reliability:
    """How reliable the influences on one target are, with the 95 % interval; NaN if unknown."""

    target: str
    mode: str
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not math.isfinite(self.value):
            return f"{self.target}, {self.mode}: not known with so few models"
        return f"{self.target}, {self.mode}: {self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Growth:
    """How far a study is to grow.

    Attributes:
        study_files: the study's files.
        folder: in which their paths are meant.
        goal: reliability that the lower ends of all intervals are to reach.
        most: models at most.
    """

    study_files: Sequence[Path]
    folder: Path
    goal: float
    most: int

    def start(self) -> None:
        """Begin with the models of the study, or go on with those of an earlier growth.

        Raises:
            UserError: the study estimates no influences, or none with an interval; it is too large.
        """
        study = read_study(self.study_files)
        if not study.estimates or study.ranked_by == "lasso":
            raise UserError(
                "--until-reliability: the study has no influences with a standard error; rank by "
                "difference_in_means or ridge."
            )
        if study.source.checkpoints:
            raise UserError("--until-reliability: the models of a bank are as many as they are.")
        if not 0 < self.goal < 1:
            raise UserError(f"--until-reliability: {self.goal} is not between 0 and 1.")
        if self.most < study.models:
            raise UserError(
                f"--at-most: {self.most} are fewer than the study's models: {study.models}; raise "
                f"it, or lower `models`."
            )
        grown = read_yaml(self.file)["models"] if self.file.exists() else 0
        self.write(max(study.models, min(grown, self.most)))

    @property
    def file(self) -> Path:
        """Where the number of models stands that the study has grown to, for Snakemake to read."""
        return self.folder / read_study(self.study_files).folder / "launch" / "models.yaml"

    @property
    def study(self) -> Study:
        """The study as it has grown so far."""
        return read_study([*self.study_files, self.file])

    def write(self, models: int) -> None:
        """Set the number of models."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(self.file) as temporary:
            temporary.write_text(yaml.safe_dump({"models": models}))

    @property
    def tables(self) -> list[Path]:
        """Tables of the reliability of the influences that make the rankings."""
        study = self.study
        path = RULES["measure_reliability"].files["table"]
        return [
            study.folder / path.format(target=target, mode=mode, estimator=study.ranked_by)
            for target, mode in study.transfers
        ]

    def look(self) -> list[Reliability]:
        """Return how reliable the influences are, for each target and mode."""
        study, found = self.study, []
        columns = ["statistic", "value", "low", "high"]
        for table, (target, mode) in zip(self.tables, study.transfers, strict=True):
            rows = read_table(self.folder / table, columns).to_pandas()
            whole = rows[rows["statistic"] == "reliability"].dropna(subset="low")
            ends = (np.nan,) * 3 if whole.empty else whole.iloc[-1][["value", "low", "high"]]
            found.append(Reliability(target, mode, *map(float, ends)))
        return found

    def is_reached(self, found: Sequence[Reliability]) -> bool:
        """Tell whether all influences are as reliable as wanted."""
        return all(each.low >= self.goal for each in found)

    def next_models(self, found: Sequence[Reliability]) -> int:
        """Return how many models to look at next; those of now if no more are allowed.

        As many as are needed even by the upper ends of the intervals, but at least a step more and
        at most twice as many: whole blocks of balanced subsets, else whole jobs.
        """
        study = self.study
        step = study.models_per_job
        if study.source.subset.sampling == "balanced":
            sidecar = sidecar_of(study, study.source.dataset)
            step = block_models(sidecar.units(study.source.subset.unit))
        fewest = max((_needed(each.high, study.models, self.goal) for each in found), default=0)
        wanted = min(max(fewest, study.models + 1), 2 * study.models)
        models = math.ceil(wanted / step) * step
        return models if models <= self.most else max(study.models, self.most // step * step)

    def expected(self, found: Sequence[Reliability]) -> str:
        """Say how many models are expected to do, and what they cost."""
        study = self.study
        needed = max(_needed(each.value, study.models, self.goal) for each in found)
        if not math.isfinite(needed):
            return "how many models are needed is not known yet"
        plans = [plan for plan in stage_plans(study) if plan.group.rule in GROWING]
        seconds = sum(plan.seconds.sum() for plan in plans)
        more = max(0.0, needed - study.models)
        said = f"about {rounded(needed):,} models are expected to be needed"
        return f"{said}: {duration(more * seconds / study.models)} more of one job at a time"


def _needed(reliability: float, models: int, goal: float) -> float:
    """Return the models for a reliability of `goal`; infinite where that is not known."""
    needed = models_needed(reliability, models, goal)
    return needed if math.isfinite(needed) else math.inf
