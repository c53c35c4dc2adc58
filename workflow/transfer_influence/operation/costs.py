"""What jobs cost: as measured when they ran, else as calibrated."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from transfer_influence.config.recipe import Recipe
from transfer_influence.config.settings import Settings
from transfer_influence.config.study import Study
from transfer_influence.datasets.sidecar import Sidecar, read_sidecar, unit_names
from transfer_influence.errors import UserError
from transfer_influence.operation.census import benchmark_seconds
from transfer_influence.outcomes.tables import open_table
from transfer_influence.provenance import identity, read_provenance
from transfer_influence.results import Job, JobGroup, calibration_of, data_folder
from transfer_influence.subsets import listed_mask

# Enough jobs to tell what one of a group costs.
ENOUGH = 20


class Calibration(BaseModel):
    """What a calibration has measured; times in seconds.

    Attributes:
        device: name of the device.
        startup: of a job, until its first model: imports, opening the data, compiling.
        model: to make a model and to keep what is left of it.
        step: a step of training, the mean over the epochs.
        evaluation: all test images once.
        weights_bytes: a model's weights; 0 where they are not kept.
        row_bytes: a model's row in the table.
        provenance: where this came from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: str
    startup: float
    model: float
    step: float
    evaluation: float
    weights_bytes: int
    row_bytes: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What the jobs of a group cost.

    Attributes:
        seconds: float64 (jobs,), wall time of each job.
        device: name of the device that a training job runs on.
        weights_bytes: of a model.
        row_bytes: of a model, in the table.
        past_jobs: how many jobs that have run tell this; 0 where a calibration does.
    """

    seconds: np.ndarray
    device: str
    weights_bytes: float
    row_bytes: float
    past_jobs: int


def cost_of(study: Study, group: JobGroup) -> Cost | None:
    """Return what the jobs of a group cost; None if that is not known.

    Jobs of the group that have run tell best. Training that has not run is known by its
    calibration, if there is one.

    Raises:
        UserError: a file that should tell is damaged.
    """
    measured = measured_cost(study, group)
    if measured is not None or not group.models:
        return measured
    calibration = read_calibration(calibration_of(study, group))
    return None if calibration is None else calibrated_cost(study, group, calibration)


def stage_name(group: JobGroup) -> str:
    """Return the name of the stage whose calibration tells what the jobs of a group cost."""
    return "/".join(group.transfer or ("sources",))


def read_calibration(path: Path) -> Calibration | None:
    """Read a calibration; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(
            f"{path}: {key}: {first['msg'].lower()}; delete the file and plan again."
        ) from None


def measured_cost(study: Study, group: JobGroup) -> Cost | None:
    """Return what the jobs of a group cost by the latest that have run; None if none has."""
    measured = []
    for job in reversed(group.jobs):
        measurement = _measurement(study, group, job)
        if measurement is not None:
            measured.append(measurement)
        if len(measured) == ENOUGH:
            break
    if not measured:
        return None
    return Cost(
        seconds=np.full(len(group.jobs), np.median([each.seconds for each in measured])),
        device=measured[0].device,
        weights_bytes=float(np.mean([each.weights_bytes for each in measured])),
        row_bytes=float(np.mean([each.row_bytes for each in measured])),
        past_jobs=len(measured),
    )


def calibrated_cost(study: Study, group: JobGroup, calibration: Calibration) -> Cost:
    """Return what the training jobs of a group cost by the calibration of their stage.

    Raises:
        UserError: the data set has not been converted.
    """
    recipe = recipe_of(study, group)
    validation = validation_cost(study, group, calibration)
    seconds = [
        calibration.startup
        + job.models
        * (
            calibration.model
            + steps_of_model(recipe, examples) * calibration.step
            + evaluations_of_model(recipe) * calibration.evaluation
            + validation
        )
        for job, examples in zip(group.jobs, examples_of_jobs(study, group), strict=True)
    ]
    return Cost(
        seconds=np.array(seconds),
        device=calibration.device,
        weights_bytes=calibration.weights_bytes,
        row_bytes=calibration.row_bytes,
        past_jobs=0,
    )


def validation_cost(study: Study, group: JobGroup, calibration: Calibration) -> float:
    """Return the seconds that the second transfer of a retrained model takes, if there is one.

    Raises:
        UserError: the data set has not been converted.
    """
    plan = study.counterfactuals
    if group.rule != "counterfactual_transfer" or not plan or not plan.validation_fraction:
        return 0.0
    recipe, sidecar = recipe_of(study, group), sidecar_of(study, dataset_of(study, group))
    held_out = round(plan.validation_fraction * sidecar.train_count)
    evaluation = calibration.evaluation * held_out / sidecar.test_count
    return (
        calibration.model
        + steps_of_model(recipe, sidecar.train_count - held_out) * calibration.step
        + evaluations_of_model(recipe) * evaluation
    )


def steps_of_model(recipe: Recipe, examples: int) -> int:
    """Return how many steps one model is trained for on that many examples."""
    return examples // min(recipe.batch_size, examples) * recipe.epochs


def evaluations_of_model(recipe: Recipe) -> int:
    """Return how often one model is evaluated: as its recipe says, and once in the end."""
    return sum(recipe.is_evaluated(epoch, recipe.epochs) for epoch in range(recipe.epochs)) + 1


def examples_of_jobs(study: Study, group: JobGroup) -> list[int]:
    """Return for how many training images the steps of the models of each job are.

    Where units are left out, as if all had the same number of images.

    Raises:
        UserError: the data set has not been converted.
    """
    sidecar = sidecar_of(study, dataset_of(study, group))
    units = sidecar.units(study.source.subset.unit)
    if group.rule == "train_sources":
        kept = [units_of_model(study, units)] * len(group.jobs)
    elif group.rule == "counterfactual_source":
        every = study.all_removals
        removals = [every[job.name] for job in group.jobs]
        # By steps, a model takes as long as with nothing removed.
        kept = [
            units - removal.removed(units) if removal.budget == "epochs" else units
            for removal in removals
        ]
    else:
        kept = [units] * len(group.jobs)
    return [sidecar.train_count * each // units for each in kept]


def units_of_model(study: Study, units: int) -> int:
    """Return how many of the source units a model is trained with.

    Raises:
        UserError: the units are listed in a file, and that is wrong.
    """
    subset = study.source.subset
    if subset.listed is None:
        return subset.size(units)
    folder = data_folder(study, study.source.dataset)
    return int(listed_mask(subset, unit_names(folder, subset.unit)).sum())


def recipe_of(study: Study, group: JobGroup) -> Recipe:
    """Return the recipe that the models of a group are trained with."""
    return study.targets[group.transfer[0]].recipe if group.transfer else study.source.recipe


def dataset_of(study: Study, group: JobGroup) -> str:
    """Return the name of the data set that the models of a group are trained on."""
    return study.dataset_of(group.transfer[0]) if group.transfer else study.source.dataset


def sidecar_of(study: Study, dataset: str) -> Sidecar:
    """Return what is known of a converted data set.

    Raises:
        UserError: it has not been converted.
    """
    return read_sidecar(data_folder(study, dataset) / "dataset.json")


@dataclass(frozen=True)
class _Measurement:
    """What one job has cost; bytes are a model's."""

    seconds: float
    device: str = "cpu"
    weights_bytes: float = 0.0
    row_bytes: float = 0.0


def _measurement(study: Study, group: JobGroup, job: Job) -> _Measurement | None:
    """Return what a job has cost; None if it has not run, or not with these settings."""
    home = study.folder
    table = home / job.output
    seconds = benchmark_seconds(home / job.benchmark)
    if seconds is None or not table.exists():
        return None
    if group.models == 0:
        return _Measurement(seconds)
    try:
        provenance = read_provenance(table)
        models = open_table(table).metadata.num_rows
        data = identity(data_folder(study, dataset_of(study, group)) / "dataset.json")
    except UserError:
        return None  # damaged: the job that reads it will say so
    wanted = _deciding_settings(study, group)
    same_settings = {key: provenance["settings"].get(key) for key in wanted} == wanted
    same_data = provenance["inputs"].get("sidecar") == data
    if not (same_settings and same_data and models == job.models):
        return None
    weights = table.with_suffix(".safetensors")
    kept = weights.stat().st_size if weights.exists() else 0
    return _Measurement(
        seconds, provenance["device"], kept / job.models, table.stat().st_size / job.models
    )


def _deciding_settings(study: Study, group: JobGroup) -> dict[str, Any]:
    """Return the settings that decide what a model of a group costs."""
    settings: dict[str, Settings] = {
        "architecture": study.source.architecture,
        "recipe": recipe_of(study, group),
    }
    if group.rule == "train_sources":
        settings["subset"] = study.source.subset
    deciding: dict[str, Any] = {key: each.model_dump(mode="json") for key, each in settings.items()}
    if group.rule == "counterfactual_transfer":
        assert study.counterfactuals is not None
        deciding["validation_fraction"] = study.counterfactuals.validation_fraction
    return deciding
