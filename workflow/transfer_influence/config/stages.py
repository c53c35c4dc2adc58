"""The part of a study that decides the result of one job.

Rules pass these to the scripts as JSON, so Snakemake sees a change of any value and re-runs just
the jobs that it concerns.
"""

from pathlib import Path
from typing import Any

from transfer_influence.config.recipe import Accuracy, Architecture, Head, Recipe, TargetRecipe
from transfer_influence.config.settings import Settings
from transfer_influence.config.study import (
    Budget,
    Estimator,
    FailedModels,
    Intervals,
    Method,
    Mode,
    Outcome,
    Removal,
    Study,
    Subset,
    Unit,
)


class ModelStage(Settings):
    """How models are made; what is common to all that are to be compared is `common`."""

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """Return what must agree between models that are compared, see `provenance.agreed`.

        Args:
            rule: name of the rule that makes them.
            data: digest of the data set that they are trained on.
            code: digest of the code.
        """
        raise NotImplementedError


class SourceStage(ModelStage):
    """How a shard of source models is trained."""

    seed: int
    subset: Subset
    architecture: Architecture
    recipe: Recipe

    @property
    def unit(self) -> Unit:
        """What the masks of the models keep."""
        return self.subset.unit

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """See `ModelStage`."""
        return {"source": {**self.model_dump(mode="json"), "data": data}, "code": {rule: code}}


class ImportStage(ModelStage):
    """How a shard of source models is read from existing checkpoints, and evaluated.

    Attributes:
        models: how many models the bank has up to the end of the shard.
        bank: what tells that checkpoints or masks of the shard have changed.
    """

    unit: Unit
    checkpoints: str
    masks: Path
    state_key: str | None
    key_map: dict[str, str | None]
    architecture: Architecture
    recipe: Recipe
    models: int
    bank: str

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """See `ModelStage`."""
        told = self.model_dump(mode="json", include={"architecture", "recipe"})
        return {"source": {**told, "data": data}, "code": {rule: code}}


class TransferStage(ModelStage):
    """How source models are transferred to one target in one mode."""

    seed: int
    target: str
    mode: Mode
    architecture: Architecture
    recipe: TargetRecipe

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """See `ModelStage`."""
        told = self.model_dump(mode="json", include={"seed", "recipe"})
        return {
            "source": {"architecture": self.architecture.model_dump(mode="json")},
            "targets": {self.target: {self.mode: {**told, "data": data}}},
            "code": {rule: code},
        }


class RetrainedTransferStage(TransferStage):
    """How a retrained source model is transferred; twice, if `validation_fraction` is not 0."""

    validation_fraction: float

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """See `ModelStage`."""
        told = {"validation_fraction": self.validation_fraction}
        return super().common(rule, data, code) | {"counterfactuals": told}


class SummaryStage(Settings):
    """Which models of all shards are put together."""

    models: int
    failed_models: FailedModels


class JudgedStage(Settings):
    """How one number is made of outcomes on the test images of a target: see `TestImages`."""

    seed: int
    proof_fraction: float
    accuracy: Accuracy


class InfluenceStage(JudgedStage):
    """How influences on a target are estimated by one estimator."""

    unit: Unit
    estimator: Estimator
    outcome: Outcome
    intervals: Intervals
    bootstrap_replicates: int
    held_out: float
    largest_table_gb: float


class RemovalStage(ModelStage):
    """How source models are retrained with units removed; no order for the baseline.

    Attributes:
        count: how many units are removed; None for all of a list.
        keeps: whether the units of the list are kept, and all others removed.
    """

    seed: int
    unit: Unit
    order: str | None
    count: int | None
    keeps: bool
    replicates: list[int]
    budget: Budget
    architecture: Architecture
    recipe: Recipe

    def common(self, rule: str, data: str, code: str) -> dict[str, Any]:
        """See `ModelStage`."""
        told = self.model_dump(mode="json", include={"seed", "architecture", "recipe"})
        return {"source": {**told, "data": data}, "code": {rule: code}}


class CurvesStage(JudgedStage):
    """How models that were retrained for a target are put together."""

    failed_models: FailedModels


class EmbeddingStage(Settings):
    """How models trained on all source classes look at images.

    Attributes:
        recipe: which says how images are shown.
        checkpoints: how many models.
        projection: dimensions of projected gradients; None to take none.
        seed: of the projection.
    """

    architecture: Architecture
    recipe: Recipe | TargetRecipe
    checkpoints: int
    projection: int | None
    seed: int


class SurrogateStage(Settings):
    """How a surrogate scores classes: by a method, or None for a list."""

    method: Method | None


class AgreementStage(Settings):
    """What surrogates are held against.

    Attributes:
        surrogates: their names.
        lists: which of the names are those of lists.
        checkpoints: how many models trained on all classes the others look through.
        influence: how the influences are estimated.
    """

    surrogates: list[str]
    lists: list[str]
    checkpoints: int
    influence: InfluenceStage


class ComparisonStage(Settings):
    """Which (target, mode) pairs are compared, and what their influences are on."""

    transfers: list[tuple[str, Mode]]
    outcome: Outcome
    unit: Unit


class TransfersStage(Settings):
    """What the tables of a figure of all targets and modes are of, in the same order."""

    transfers: list[tuple[str, Mode]]


class FigureStage(Settings):
    """What the title of a figure begins with."""

    title: str


class InfluencesFigureStage(FigureStage):
    """What a figure of influences shows, and whether all subsets have one size."""

    outcome: Outcome
    unit: Unit
    one_size: bool


class ReliabilityFigureStage(FigureStage):
    """Which estimators the tables of a figure of reliability are of, in the same order."""

    estimators: list[Estimator]


class CurvesFigureStage(FigureStage):
    """What was removed from the models of a figure of curves."""

    unit: Unit


class RulegraphStage(Settings):
    """What decides which rules a study needs."""

    counterfactuals: bool
    influences: bool
    checkpoints: bool
    comparison: bool
    surrogates: bool
    surrogate_orders: bool
    unit: Unit


def rulegraph_stage(study: Study) -> RulegraphStage:
    """Return what decides which rules a study needs."""
    orders = study.counterfactuals.orders if study.counterfactuals else []
    return RulegraphStage(
        counterfactuals=study.counterfactuals is not None,
        influences=study.estimates,
        checkpoints=study.source.checkpoints is not None,
        comparison=study.compares_targets,
        surrogates=study.surrogates is not None,
        surrogate_orders=not set(orders).isdisjoint(study.surrogate_names),
        unit=study.source.subset.unit,
    )


def source_stage(study: Study) -> SourceStage:
    """Return the settings of all source models of a study."""
    source = study.source
    return SourceStage(
        seed=study.seed,
        subset=source.subset,
        architecture=source.architecture,
        recipe=source.recipe,
    )


def import_stage(study: Study, models: int, bank: str) -> ImportStage:
    """Return the settings of a shard of source models that come from checkpoints."""
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
        models=models,
        bank=bank,
    )


def transfer_stage(study: Study, target: str, mode: Mode) -> TransferStage:
    """Return the settings of the transfers to one target in one mode."""
    recipe = study.targets[target].recipe
    if mode == "full":
        recipe = recipe.model_copy(update={"head": Head()})  # which is of `fixed` only
    return TransferStage(
        seed=study.seed,
        target=target,
        mode=mode,
        architecture=study.source.architecture,
        recipe=recipe,
    )


def retrained_transfer_stage(study: Study, target: str, mode: Mode) -> RetrainedTransferStage:
    """Return the settings of the transfers of retrained models to one target in one mode."""
    assert study.counterfactuals is not None
    return RetrainedTransferStage(
        **dict(transfer_stage(study, target, mode)),
        validation_fraction=study.counterfactuals.validation_fraction,
    )


def judged_stage(study: Study, target: str) -> JudgedStage:
    """Return how the outcomes on a target are judged."""
    return JudgedStage(
        seed=study.seed,
        proof_fraction=study.proof_fraction,
        accuracy=study.targets[target].recipe.accuracy,
    )


def curves_stage(study: Study, target: str) -> CurvesStage:
    """Return how the models that were retrained for a target are put together."""
    judged = judged_stage(study, target)
    return CurvesStage(**dict(judged), failed_models=study.failed_models)


def influence_stage(study: Study, target: str, estimator: Estimator) -> InfluenceStage:
    """Return the settings of the influences by one estimator; its memory changes no result."""
    settings = study.influence
    return InfluenceStage(
        **dict(judged_stage(study, target)),
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
        keeps=removal.listed is not None and removal.listed.keep is not None,
        replicates=list(removal.replicates),
        budget=removal.budget,
        architecture=study.source.architecture,
        recipe=study.source.recipe,
    )


def embedding_stage(study: Study, target: str | None) -> EmbeddingStage:
    """Return how full models look at the training images of a target, or None for the source."""
    assert study.surrogates is not None
    wanted = study.surrogates
    return EmbeddingStage(
        architecture=study.source.architecture,
        recipe=study.targets[target].recipe if target else study.source.recipe,
        checkpoints=wanted.checkpoints,
        projection=wanted.projection if "trak" in wanted.methods else None,
        seed=study.seed,
    )


def surrogate_stage(study: Study, surrogate: str) -> SurrogateStage:
    """Return how a surrogate scores classes."""
    assert study.surrogates is not None
    methods = [method for method in study.surrogates.methods if method == surrogate]
    return SurrogateStage(method=methods[0] if methods else None)


def agreement_stage(study: Study, target: str) -> AgreementStage:
    """Return what the surrogates of a target are held against."""
    assert study.surrogates is not None
    return AgreementStage(
        surrogates=study.surrogate_names,
        lists=list(study.surrogates.lists),
        checkpoints=study.surrogates.checkpoints,
        influence=influence_stage(study, target, study.ranked_by),
    )
