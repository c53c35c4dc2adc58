"""The part of a study that decides the result of one job.

Rules pass these to the scripts as JSON, so Snakemake sees a change of any value and re-runs just
the jobs that it concerns.
"""

from pathlib import Path

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.settings import Settings
from transfer_influence.config.study import (
    Estimator,
    Intervals,
    Mode,
    Outcome,
    Removal,
    Study,
    Subset,
    Unit,
)


class SourceStage(Settings):
    """How a shard of source models is trained."""

    seed: int
    subset: Subset
    architecture: Architecture
    recipe: Recipe


class ImportStage(Settings):
    """How a shard of source models is read from existing checkpoints, and evaluated."""

    unit: Unit
    checkpoints: str
    masks: Path
    state_key: str | None
    key_map: dict[str, str | None]
    architecture: Architecture
    recipe: Recipe


class TransferStage(Settings):
    """How source models are transferred to one target in one mode."""

    seed: int
    target: str
    mode: Mode
    architecture: Architecture
    recipe: TargetRecipe


class RetrainedTransferStage(TransferStage):
    """How a retrained source model is transferred; twice, if `validation_fraction` is not 0."""

    validation_fraction: float


class InfluenceStage(Settings):
    """How influences are estimated by one estimator."""

    seed: int
    unit: Unit
    estimator: Estimator
    outcome: Outcome
    intervals: Intervals
    bootstrap_replicates: int
    held_out: float
    largest_table_gb: float


class RemovalStage(Settings):
    """How a source model is retrained with units removed; no order for the baseline."""

    seed: int
    unit: Unit
    order: str | None
    count: int
    replicate: int
    architecture: Architecture
    recipe: Recipe


def source_stage(study: Study) -> SourceStage:
    """Return the settings of all source models of a study."""
    source = study.source
    return SourceStage(
        seed=study.seed,
        subset=source.subset,
        architecture=source.architecture,
        recipe=source.recipe,
    )


def import_stage(study: Study) -> ImportStage:
    """Return the settings of all source models of a study that come from checkpoints."""
    source = study.source
    assert source.checkpoints is not None
    assert source.masks is not None
    return ImportStage(
        unit=source.subset.unit,
        checkpoints=source.checkpoints,
        masks=source.masks,
        state_key=source.state_key,
        key_map=source.key_map,
        architecture=source.architecture,
        recipe=source.recipe,
    )


def transfer_stage(study: Study, target: str, mode: Mode) -> TransferStage:
    """Return the settings of the transfers to one target in one mode."""
    return TransferStage(
        seed=study.seed,
        target=target,
        mode=mode,
        architecture=study.source.architecture,
        recipe=study.targets[target].recipe,
    )


def retrained_transfer_stage(study: Study, target: str, mode: Mode) -> RetrainedTransferStage:
    """Return the settings of the transfers of retrained models to one target in one mode."""
    assert study.counterfactuals is not None
    return RetrainedTransferStage(
        **dict(transfer_stage(study, target, mode)),
        validation_fraction=study.counterfactuals.validation_fraction,
    )


def influence_stage(study: Study, estimator: Estimator) -> InfluenceStage:
    """Return the settings of the influences by one estimator; its memory changes no result."""
    settings = study.influence
    return InfluenceStage(
        seed=study.seed,
        unit=study.source.subset.unit,
        estimator=estimator,
        outcome=settings.outcome,
        intervals=settings.intervals,
        bootstrap_replicates=settings.bootstrap_replicates,
        held_out=settings.held_out,
        largest_table_gb=settings.largest_table_gb,
    )


def removal_stage(study: Study, removal: Removal) -> RemovalStage:
    """Return the settings of the model that is retrained for a removal."""
    return RemovalStage(
        seed=study.seed,
        unit=study.source.subset.unit,
        order=removal.order,
        count=removal.count,
        replicate=removal.replicate,
        architecture=study.source.architecture,
        recipe=study.source.recipe,
    )
