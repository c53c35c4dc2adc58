"""A study: what is trained on what, and which questions are asked of it."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.settings import Settings, check
from transfer_influence.errors import UserError

Mode = Literal["fixed", "full"]
Order = Literal["top", "bottom", "random"]
Estimator = Literal["difference_in_means"]
FailedModels = Literal["stop", "exclude"]
Outcome = Literal[
    "raw_margin", "softmax_margin", "raw_logit", "softmax_probability", "is_correct", "accuracy"
]


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"{name!r} becomes a file name; use letters, digits, '_', '-' and '.' only"
        )
    return name


Name = Annotated[str, AfterValidator(_file_name)]


def _each_once(values: list[Any]) -> list[Any]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice; remove one")
    return values


class Subset(Settings):
    """Which share of the source classes one model sees; drawn uniformly without replacement."""

    fraction: float | None = Field(
        None, gt=0, lt=1, description="Share of the classes; half a class rounds down."
    )
    count: PositiveInt | None = Field(
        None, description="Number of classes, in place of `fraction`."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "Subset":
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give either `fraction` or `count`")
        return self

    def size(self, classes: int) -> int:
        """Return how many of `classes` a model sees."""
        # Rounded first, as 0.29 × 100 is 28.999999999999996.
        return self.count or int(round((self.fraction or 0) * classes, 9))

    @property
    def least_classes(self) -> int:
        """The number of classes from which on a model sees at least one and misses at least one."""
        return self.count + 1 if self.count else math.ceil(round(1 / (self.fraction or 1), 9))


class Source(Settings):
    """What the source models are and what they are trained on."""

    dataset: Name = Field(description="Data set whose classes are to be judged.")
    subset: Subset = Field(Subset(fraction=0.5), description="The classes one source model sees.")
    architecture: Architecture = Field(Architecture(), description="The network.")
    recipe: Recipe = Field(description="How source models are trained.")


class Target(Settings):
    """One downstream task."""

    dataset: Name | None = Field(None, description="Data set; the target's own name if not given.")
    modes: Annotated[list[Mode], AfterValidator(_each_once)] = Field(
        min_length=1,
        description="`fixed`: train only a new head; `full`: fine-tune the whole network.",
    )
    recipe: TargetRecipe = Field(description="How models are transferred to this target.")


class Influence(Settings):
    """How influences are estimated from the outcomes of all transfers."""

    estimators: Annotated[list[Estimator], AfterValidator(_each_once)] = Field(
        ["difference_in_means"],
        min_length=1,
        description="One result file each; the first one makes the ranking.",
    )
    outcome: Outcome = Field("raw_margin", description="The outcome to explain.")


class Counterfactuals(Settings):
    """Source models retrained with classes removed, to check what the ranking says."""

    orders: Annotated[list[Order], AfterValidator(_each_once)] = Field(
        ["top", "bottom", "random"],
        min_length=1,
        description="`top`: most helpful classes first; `bottom`: most harmful first; `random`: "
        "another random order for each replicate, the control.",
    )
    counts: Annotated[list[int], AfterValidator(_each_once)] = Field(
        min_length=1, description="How many classes to remove; 0 is the shared baseline."
    )
    replicates: PositiveInt = Field(
        3, description="Independent retrainings of each point; more of them retrain the point."
    )

    @model_validator(mode="after")
    def _not_negative(self) -> "Counterfactuals":
        if min(self.counts) < 0:
            raise ValueError(f"counts: {min(self.counts)} is negative; remove 0 classes or more")
        return self


@dataclass(frozen=True)
class Removal:
    """One point of a counterfactual curve: the job that trains its source models."""

    name: str
    order: Order | None
    count: int
    ranking: tuple[str, Mode] | None

    @classmethod
    def at(cls, order: Order, count: int, target: str, mode: Mode) -> "Removal":
        """Return the removal for one point of the curves of one (target, mode).

        Removing nothing is the same for all orders and targets, and a random removal for all
        targets, so these are trained once and shared.
        """
        if count == 0:
            return cls("none", None, 0, None)
        if order == "random":
            return cls(f"random-{count}", order, count, None)
        return cls(f"{target}-{mode}-{order}-{count}", order, count, (target, mode))


class Study(Settings):
    """All that decides the results of a study."""

    study: Name = Field(description="Name of the study; results go to `{results}/{study}`.")
    results: Path = Field(Path("results"), description="Folder for the results of all studies.")
    seed: int = Field(0, ge=0, description="The seed that all random streams come from.")
    models: int = Field(ge=2, description="Source models whose outcomes are used.")
    models_per_job: PositiveInt = Field(
        16, description="Models one job trains, one after the other; changes no result."
    )
    source: Source
    targets: dict[Name, Target] = Field(min_length=1, description="The downstream tasks, by name.")
    influence: Influence = Field(Influence(), description="See below.")
    counterfactuals: Counterfactuals | None = Field(
        None, description="See below; without it, nothing is retrained."
    )
    failed_models: FailedModels = Field(
        "stop",
        description="What to do when the loss of a model is not finite, twice with the same seeds: "
        "`stop` the study, naming the model, or `exclude` it from the results.",
    )
    scratch: str | None = Field(
        None,
        description="Folder on a disk of the machine that trains, such as `$TMPDIR`: converted "
        "images are copied there and read from there; changes no result.",
    )

    def dataset_of(self, target: str) -> str:
        """Return the name of a target's data set."""
        return self.targets[target].dataset or target

    @property
    def datasets(self) -> list[str]:
        """Names of all data sets, the source's first, each once."""
        names = [self.source.dataset, *(self.dataset_of(target) for target in self.targets)]
        return list(dict.fromkeys(names))

    @property
    def resolutions(self) -> set[int]:
        """All resolutions that the network is given images in."""
        recipes = [self.source.recipe, *(target.recipe for target in self.targets.values())]
        return {recipe.resolution for recipe in recipes}

    @property
    def transfers(self) -> list[tuple[str, Mode]]:
        """All (target, mode) pairs, in the order of the config."""
        return [(name, mode) for name, target in self.targets.items() for mode in target.modes]

    @property
    def shards(self) -> list[str]:
        """Names of all shards. Shards are always full, so the last may hold models to spare."""
        size = self.models_per_job
        return [shard_name(first, size) for first in range(0, self.models, size)]

    def removals(self, target: str, mode: Mode) -> list[Removal]:
        """Return the points of the counterfactual curves of one (target, mode), each once."""
        plan = self.counterfactuals
        if plan is None:
            return []
        points = [
            Removal.at(order, count, target, mode) for order in plan.orders for count in plan.counts
        ]
        return list(dict.fromkeys(points))

    @property
    def least_classes(self) -> int:
        """The number of source classes that the subset and the removals need at least."""
        removed = max(self.counterfactuals.counts) if self.counterfactuals else 0
        return max(removed + 2, self.source.subset.least_classes)


def check_classes(dataset: str, classes: int, least: int) -> None:
    """Check that a source data set has the classes that a study needs.

    Raises:
        UserError: it has fewer.
    """
    if classes < least:
        raise UserError(
            f"data set {dataset!r}: {classes} classes, but the study needs at least {least}, so "
            f"that a subset sees a class and misses one, and two are left after a removal; change "
            f"source.subset or counterfactuals.counts."
        )


def shard_name(first: int, size: int) -> str:
    """Name the shard of `size` models that starts at model `first`."""
    return f"{first:06d}-{first + size - 1:06d}"


def shard_models(shard: str) -> range:
    """Return the models of a shard, from its name."""
    first, last = shard.split("-")
    return range(int(first), int(last) + 1)


def check_study(values: Any, origin: str) -> Study:
    """Build a study from the plain values of its config.

    Raises:
        UserError: one sentence naming the file, the key, the value and the remedy.
    """
    return check(Study, values, origin)
