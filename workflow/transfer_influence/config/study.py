"""A study: what is trained on what, and which questions are asked of it."""

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from transfer_influence.config.lists import list_entries
from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.config.settings import Settings, check, read_yaml, updated
from transfer_influence.errors import UserError

Mode = Literal["fixed", "full"]
Order = Literal["top", "bottom", "random", "random_matched"]
RANKED_ORDERS = ("top", "bottom", "random_matched")  # which follow the ranking of a target
LEAST_MODELS = 4  # two with a unit and two without
Budget = Literal["epochs", "steps"]
BASELINE = "none"  # stands for the order where nothing is removed
Estimator = Literal["difference_in_means", "ridge", "lasso"]
Intervals = Literal["closed_form", "bootstrap"]
FailedModels = Literal["stop", "exclude"]
Unit = Literal["class", "example"]
PLURAL: dict[Unit, str] = {"class": "classes", "example": "examples"}
Sampling = Literal["uniform", "complement_pairs", "balanced"]
Method = Literal[
    "feature_similarity",
    "nearest_neighbours",
    "label_mapping",
    "feature_mapping",
    "leep",
    "logme",
    "h_score",
    "trak",
]
Outcome = Literal[
    "raw_margin",
    "softmax_margin",
    "raw_logit",
    "softmax_probability",
    "log_odds",
    "is_correct",
    "accuracy",
    "auroc",
]

RECIPE = {  # of the examples below
    "epochs": 15,
    "batch_size": 64,
    "learning_rate": 0.1,
    "schedule": {"kind": "cyclic", "peak_epoch": 5},
    "resolution": 224,
}


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(
            f"{name!r} becomes a file name; use letters, digits, '_', '-' and '.' only"
        )
    return name


Name = Annotated[str, AfterValidator(_file_name)]


def _order_name(name: str) -> str:
    # Without "-", no removal of a list has the name of one that follows a ranking.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} names an order; use letters, digits and '_' only")
    if name in (BASELINE, *get_args(Order), *get_args(Method)):
        raise ValueError(f"{name!r} is the name of another order; choose another one")
    return name


ListName = Annotated[str, AfterValidator(_order_name)]


def _each_once(values: list[Any]) -> list[Any]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice; remove one")
    return values


class Subset(Settings):
    """Which part of the source data one model sees.

    Drawn without replacement, `fraction` of the units if nothing else is said; or one fixed list,
    the same for all models.
    """

    unit: Unit = Field(
        "class",
        description="What is drawn, and judged: classes, or single training examples.",
        examples=["example"],
    )
    fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Share of the units, 0.5 if no other size is given; half a unit rounds down.",
        examples=[0.25],
    )
    count: PositiveInt | None = Field(
        None, description="Number of units, in place of `fraction`.", examples=[500]
    )
    sampling: Sampling = Field(
        "uniform",
        description="`balanced`: halves in blocks in which any two units are together equally "
        "often, so that fewer models tell as much; `complement_pairs`: models 2i and 2i+1 see "
        "opposite halves. See docs/estimators.md.",
        examples=["balanced"],
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of the draw, in place of the study's.", examples=[1]
    )
    keep: Path | None = Field(
        None,
        description="File that lists the units that every model sees, by index or name: `.txt` "
        "with one a line, `.csv`, or `.npy`. No influences are estimated then.",
        examples=["config/lists/dogs.txt"],
    )
    drop: Path | None = Field(
        None,
        description="The same for units that no model sees; all others are kept.",
        examples=["config/lists/dogs.txt"],
    )

    @model_validator(mode="after")
    def _one_size(self) -> "Subset":
        sizes = [
            name
            for name in ("fraction", "count", "keep", "drop")
            if getattr(self, name) is not None
        ]
        if len(sizes) > 1:
            raise ValueError(f"both `{sizes[0]}` and `{sizes[1]}` are given; keep one of them")
        if self.listed and (self.sampling != "uniform" or self.seed is not None):
            raise ValueError(
                f"`{sizes[0]}` draws nothing, so `sampling` and `seed` mean nothing; remove them"
            )
        if self.sampling != "uniform" and self.fraction not in (None, 0.5):
            raise ValueError(f"{self.sampling} are halves; set `fraction` to 0.5")
        return self

    @property
    def listed(self) -> Path | None:
        """The file with the units of all models, where nothing is drawn."""
        return self.keep or self.drop

    def size(self, units: int) -> int:
        """Return how many of `units` are drawn; with pairs, for the first of the two."""
        # Rounded first, as 0.29 × 100 is 28.999999999999996.
        return self.count or int(round((self.fraction or 0.5) * units, 9))

    @property
    def least_units(self) -> int:
        """The number of units from which on a model sees at least one and misses at least one."""
        return self.count + 1 if self.count else math.ceil(round(1 / (self.fraction or 0.5), 9))


def checkpoint_path(pattern: str, model: int) -> Path:
    """Return the file of one source model; `pattern` has `{model}` where its number stands."""
    return Path(pattern.format(model=model))


class Source(Settings):
    """What the source models are: trained here, or read from `checkpoints`."""

    dataset: Name = Field(
        description="Data set whose classes or examples are to be judged.",
        examples=["imagenet"],
    )
    subset: Subset = Field(
        Subset(),
        description="The part of the data that one source model sees.",
        examples=[{"count": 500}],
    )
    architecture: Architecture = Field(
        Architecture(), description="The network.", examples=[{"name": "resnet18"}]
    )
    recipe: Recipe = Field(
        description="How source models are trained, evaluated and, with units removed, retrained.",
        examples=[RECIPE],
    )
    checkpoints: str | None = Field(
        None,
        description="Files of source models that exist already, in place of training: the path of "
        "one, with `{model}` where its number stands (`{model:04d}` with leading zeros). State "
        "dicts saved by `torch.save` or as `.safetensors`; nothing is unpickled.",
        examples=["bank/{model}.pt"],
    )
    masks: Path | None = Field(
        None,
        description="For `checkpoints`: `.npy` file with a row a model and a column a unit, 1 "
        "where the model was trained with it; or the same with eight units a byte, by "
        '`numpy.packbits(masks, axis=1, bitorder="little")`.',
        examples=["bank/masks.npy"],
    )
    state_key: str | None = Field(
        None,
        description="For `checkpoints`: the entry of a file that holds the state dict, where the "
        "file holds more.",
        examples=["state_dict"],
    )
    key_map: dict[str, str | None] = Field(
        {},
        description="For `checkpoints`: beginnings of parameter names, and what to put in their "
        "place, `null` to leave such parameters out; the first that fits counts.",
        examples=[{"module.": "", "normalizer.": None}],
    )

    @model_validator(mode="after")
    def _bank(self) -> "Source":
        if (self.checkpoints is None) != (self.masks is None):
            raise ValueError("`checkpoints` and `masks` belong together; give both or neither")
        if self.checkpoints is None:
            if self.state_key is not None or self.key_map:
                raise ValueError("`state_key` and `key_map` are for `checkpoints`; remove them")
            return self
        if self.subset.model_fields_set - {"unit"}:
            raise ValueError(
                "`masks` say what each model of `checkpoints` has seen; leave only `unit` in "
                "`subset`"
            )
        try:
            named = checkpoint_path(self.checkpoints, 0) != checkpoint_path(self.checkpoints, 1)
        except (KeyError, ValueError, IndexError, AttributeError):
            named = False
        if not named:
            raise ValueError(
                f"checkpoints: {self.checkpoints!r} does not say where the number of a model "
                "stands; write {model} there, and no other braces"
            )
        return self

    def checkpoint(self, model: int) -> Path:
        """Return the file of one source model."""
        assert self.checkpoints is not None
        return checkpoint_path(self.checkpoints, model)


class TargetList(Settings):
    """Units that are removed, or kept, for one target."""

    remove: Path | None = Field(
        None,
        description="File that lists the units to remove, as `subset.keep` does.",
        examples=["config/lists/dogs.txt"],
    )
    keep: Path | None = Field(
        None,
        description="File that lists the units to keep; all others are removed.",
        examples=["config/lists/dogs.txt"],
    )

    @model_validator(mode="after")
    def _one_file(self) -> "TargetList":
        if (self.remove is None) == (self.keep is None):
            raise ValueError("give either `remove` or `keep`")
        return self

    @property
    def file(self) -> Path:
        """The file that lists the units."""
        path = self.remove or self.keep
        assert path is not None
        return path

    def removed(self, units: int) -> int:
        """Return how many of so many units are removed.

        Raises:
            UserError: the file is missing, unreadable or empty.
        """
        length = len(list_entries(self.file))
        return units - length if self.keep else length


class Target(Settings):
    """One downstream task."""

    dataset: Name | None = Field(
        None,
        description="Data set; the target's own name if not given.",
        examples=["cifar10"],
    )
    modes: Annotated[list[Mode], AfterValidator(_each_once)] = Field(
        min_length=1,
        description="`fixed`: train only a new head; `full`: fine-tune the whole network.",
        examples=[["fixed", "full"]],
    )
    recipe: TargetRecipe = Field(
        description="How models are transferred to this target.", examples=[RECIPE]
    )
    lists: dict[ListName, TargetList] = Field(
        {},
        description="Counterfactuals of this target alone, by name: all units of a file are "
        "removed, or all others.",
        examples=[{"dogs": {"remove": "config/lists/dogs.txt"}}],
    )


class Influence(Settings):
    """How influences are estimated from the outcomes of all transfers."""

    estimators: Annotated[list[Estimator], AfterValidator(_each_once)] = Field(
        ["difference_in_means"],
        min_length=1,
        examples=[["ridge", "difference_in_means"]],
        description="One result file each; the first one makes the ranking, unless "
        "`counterfactuals.estimator` names another. "
        "`difference_in_means`: models with the class minus models without; `ridge`: linear model, "
        "which takes out the noise of the other classes; `lasso`: linear model with few non-zero "
        "influences.",
    )
    outcome: Outcome = Field(
        "raw_margin",
        examples=["accuracy"],
        description="The outcome to explain, a mean over test images. Of the true class: "
        "`raw_margin`, its logit minus the largest of the others; `softmax_margin`, the same of "
        "probabilities, 1 from a raw margin of 20 on; `raw_logit`; `softmax_probability`; "
        "`log_odds`, log p - log(1 - p), which never saturates. Or `is_correct`; `accuracy`, the "
        "same without influences on single images; `auroc`, for targets of two classes.",
    )
    intervals: Intervals = Field(
        "closed_form",
        examples=["bootstrap"],
        description="How 95 % intervals are made: `closed_form`, from the standard error; "
        "`bootstrap`, by estimating again from models drawn with replacement. `lasso` has none.",
    )
    bootstrap_replicates: int = Field(
        1000, ge=100, examples=[400], description="Draws of a bootstrap."
    )
    held_out: float = Field(
        0.2,
        gt=0,
        lt=1,
        examples=[0.1],
        description="Share of the models that predictions are judged by: to choose the penalty of "
        "`lasso`, and for the linear datamodeling score.",
    )
    memory_gb: float = Field(
        4,
        ge=2,
        examples=[16],
        description="Memory of a job that estimates, in GB of 10⁹ bytes; changes no result.",
    )
    largest_table_gb: float = Field(
        10,
        ge=0,
        examples=[0],
        description="Influences on single target examples, or on target classes, are left out "
        "where they take more than this many GB (8 bytes a source class and example); 0 for none.",
    )


class Counterfactuals(Settings):
    """Source models retrained with classes removed, to check what the ranking says."""

    orders: Annotated[list[Order | Method | ListName], AfterValidator(_each_once)] = Field(
        ["top", "bottom", "random"],
        min_length=1,
        description="`top`: most helpful classes first; `bottom`: most harmful first; `random`: "
        "another random order for each replicate, the control; `random_matched`: as many random "
        "classes as `top`, with as many training images, so that classes of many images are "
        "compared with such; the name of one of `surrogates`: "
        "first what that calls most helpful.",
        examples=[["top", "bottom"]],
    )
    counts: Annotated[list[int], AfterValidator(_each_once)] = Field(
        min_length=1,
        description="How many classes to remove. 0, the baseline that all others are compared to, "
        "is always among them, whether it is named or not.",
        examples=[[0, 50, 100]],
    )
    lists: dict[ListName, Path] = Field(
        {},
        description="Further orders by name: files that list units as `subset.keep` does, removed "
        "in the order of the file, at each of `counts` that is below their length, and as a whole.",
        examples=[{"dogs": "config/lists/dogs.txt"}],
    )
    replicates: PositiveInt = Field(
        3,
        description="Independent retrainings of each point.",
        examples=[3],
    )
    replicates_per_job: PositiveInt = Field(
        10,
        description="Replicates of a point that one job retrains, one after the other. A job takes "
        "some seconds to start: choose so many that it lasts much longer, and 1 where a single "
        "model takes hours.",
        examples=[1],
    )
    budgets: Annotated[list[Budget], AfterValidator(_each_once)] = Field(
        ["epochs"],
        min_length=1,
        description="How long a model is retrained. `epochs`: as many as the recipe says, as "
        "published, so that with fewer images it makes fewer steps; `steps`: as many optimizer "
        "steps as with nothing removed, at the same learning rates, so that only the images "
        "differ. Both: two sets of curves.",
        examples=[["epochs", "steps"]],
    )
    validation_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of each class of a target's training images by which the best number to "
        "remove is chosen: each retrained model is transferred once more, without these. 0: no "
        "second transfer, and no choice.",
        examples=[0.1],
    )
    proof_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="Share of each class of a target's test images that the retrained models are "
        "judged by. The others make the ranking. 0: all images do both, as published, so that a "
        "ranking is judged by the images that it was made from, which flatters it.",
        examples=[0.3],
    )
    estimator: Estimator | None = Field(
        None,
        description="The one of `influence.estimators` that makes the ranking; the first if not "
        "given.",
        examples=["difference_in_means"],
    )

    @model_validator(mode="after")
    def _not_negative(self) -> "Counterfactuals":
        if min(self.counts) < 0:
            raise ValueError(f"counts: {min(self.counts)} is negative; remove 0 classes or more")
        return self

    @property
    def jobs(self) -> list[range]:
        """The replicates that the jobs of a point retrain."""
        size = self.replicates_per_job
        return [
            range(first, min(first + size, self.replicates))
            for first in range(0, self.replicates, size)
        ]

    @property
    def points(self) -> list[tuple[str, int]]:
        """The points of all curves: an order, or the name of a list, and how many units it removes.

        Every curve begins at 0: without models that lost nothing there is nothing to compare with.

        Raises:
            UserError: a list is missing, unreadable or empty.
        """
        points: list[tuple[str, int]] = []
        counts = list(dict.fromkeys([0, *self.counts]))
        for order in self.orders:
            points += [(order, count) for count in counts]
        for name, path in self.lists.items():
            length = len(list_entries(path))
            points += [(name, count) for count in counts if count < length]
            points.append((name, length))
        return points


class Surrogates(Settings):
    """Cheap scores of the source classes, which the study holds against its influences."""

    methods: Annotated[list[Method], AfterValidator(_each_once)] = Field(
        [method for method in get_args(Method) if method != "trak"],
        examples=[["feature_similarity", "trak"]],
        description="What scores classes by models trained on all of them, see "
        "docs/surrogates.md; `trak` takes gradients of all images.",
    )
    lists: dict[ListName, Path] = Field(
        {},
        examples=[{"by_name": "config/lists/{target}-by-name.txt"}],
        description="Further rankings by name, of a person or a language model: files as those of "
        "`subset.keep`, the most helpful class first; classes that are not listed come last, all "
        "alike. `{target}` in a path stands for the name of the target.",
    )
    checkpoints: PositiveInt = Field(
        1,
        examples=[3],
        description="How many models trained on all classes the scores are the mean of: the first "
        "replicates of the counterfactual baseline, which are shared.",
    )
    projection: PositiveInt = Field(
        512, examples=[4096], description="Dimensions that `trak` projects gradients to."
    )

    @property
    def names(self) -> list[str]:
        """The names of all surrogates."""
        return [*self.methods, *self.lists]

    def list_of(self, name: str, target: str) -> Path:
        """Return the file of a list for a target."""
        return Path(str(self.lists[name]).replace("{target}", target))


@dataclass(frozen=True)
class Removal:
    """Some replicates of a point of a counterfactual curve: the job that trains their models.

    Attributes:
        name: of the job.
        order: in which units are removed, or the name of a list; None for the baseline.
        count: how many are removed; None for all of a list, or all but these.
        replicates: numbers of the models.
        ranking: the target and mode whose ranking it follows, if it does.
        budget: how long models are retrained.
        listed: the list of one target that it follows, if it does.
    """

    name: str
    order: str | None
    count: int | None
    replicates: range
    ranking: tuple[str, Mode] | None
    budget: Budget = "epochs"
    listed: TargetList | None = None

    def removed(self, units: int) -> int:
        """Return how many of so many units are removed.

        Raises:
            UserError: a list is missing, unreadable or empty.
        """
        if self.listed:
            return self.listed.removed(units)
        assert self.count is not None
        return self.count

    @classmethod
    def at(
        cls,
        order: str,
        count: int,
        replicates: range,
        target: str,
        mode: Mode,
        budget: Budget = "epochs",
        surrogates: Sequence[str] = (),
    ) -> "Removal":
        """Return the removal for some replicates of a point of the curves of one (target, mode).

        Removing nothing is the same for all orders, targets and budgets, and a random or listed
        removal for all targets, so these are trained once and shared. An order that is neither is
        that of the ranking of a target, or of one of `surrogates`.
        """
        if count == 0:
            return cls.baseline(replicates)
        point = cls._name(f"{order}-{count}", budget, replicates)
        if order in (*RANKED_ORDERS, *surrogates):
            name = f"{target}-{mode}-{point}"
            return cls(name, order, count, replicates, (target, mode), budget)
        return cls(point, order, count, replicates, None, budget)

    @classmethod
    def baseline(cls, replicates: range) -> "Removal":
        """Return the removal of nothing, for some replicates."""
        return cls(f"{BASELINE}-{replicates.start}", None, 0, replicates, None)

    @classmethod
    def of_list(
        cls, target: str, order: str, listed: TargetList, replicates: range, budget: Budget
    ) -> "Removal":
        """Return the removal of a list of one target, by its name, for some replicates."""
        name = cls._name(f"{target}-{order}", budget, replicates)
        return cls(name, order, None, replicates, None, budget, listed)

    @staticmethod
    def _name(point: str, budget: Budget, replicates: range) -> str:
        by = "" if budget == "epochs" else f"-{budget}"
        return f"{point}{by}-{replicates.start}"


class Study(Settings):
    """All that decides the results of a study."""

    study: Name = Field(
        description="Name of the study; results go to `{results}/{study}`.", examples=["paper"]
    )
    results: Path = Field(
        Path("results"),
        description="Folder for the results of all studies.",
        examples=["/scratch/results"],
    )
    seed: int = Field(
        0, ge=0, description="The seed that all random streams come from.", examples=[0]
    )
    models: int = Field(ge=2, description="Source models whose outcomes are used.", examples=[7540])
    models_per_job: PositiveInt = Field(
        16,
        description="Models one job trains, one after the other; changes no result.",
        examples=[16],
    )
    source: Source = Field(
        description="What source models are and what they are trained on.",
        examples=[{"dataset": "imagenet", "recipe": RECIPE}],
    )
    targets: dict[Name, Target] = Field(
        min_length=1,
        description="The downstream tasks, by name.",
        examples=[{"cifar10": {"modes": ["fixed"], "recipe": RECIPE}}],
    )
    influence: Influence = Field(
        Influence(),
        description="How influences are estimated.",
        examples=[{"outcome": "softmax_margin"}],
    )
    counterfactuals: Counterfactuals | None = Field(
        None,
        description="Which classes to remove and retrain; without it, nothing is retrained.",
        examples=[{"counts": [0, 50, 100]}],
    )
    surrogates: Surrogates | None = Field(
        None,
        description="Which cheap scores of the source classes to hold against the influences; "
        "without it, none.",
        examples=[{"methods": ["label_mapping"]}],
    )
    failed_models: FailedModels = Field(
        "stop",
        description="What to do when the loss of a model is not finite, twice with the same seeds: "
        "`stop` the study, naming the model, or `exclude` it from the results.",
        examples=["exclude"],
    )
    scratch: str | None = Field(
        None,
        description="Folder on a disk of the machine that trains, such as `$TMPDIR`: converted "
        "images are copied there and read from there; changes no result.",
        examples=["$TMPDIR"],
    )
    tensorboard: bool = Field(
        False,
        description="Write the curves of every model for TensorBoard, to "
        "`{results}/{study}/tensorboard`; changes no result, and models that are trained already "
        "get none.",
        examples=[True],
    )

    @model_validator(mode="after")
    def _enough(self) -> "Study":
        if self.estimates and self.models < LEAST_MODELS:
            raise ValueError(
                f"models: {self.models} tell no influences; raise it to {LEAST_MODELS} at least"
            )
        if self.source.subset.sampling == "complement_pairs" and self.models % 2:
            raise ValueError(
                f"models: {self.models} leave the last of the complement_pairs without a partner; "
                f"set it to an even number"
            )
        return self

    @model_validator(mode="after")
    def _ranked(self) -> "Study":
        if self.counterfactuals and not self.estimates:
            raise ValueError(
                "source.subset lists what every model sees, so no influence can be estimated and "
                "nothing ranked; remove `counterfactuals`"
            )
        if self.ranked_by not in self.influence.estimators:
            raise ValueError(
                f"counterfactuals.estimator: {self.ranked_by!r} is not among influence.estimators; "
                "add it there"
            )
        return self

    @model_validator(mode="after")
    def _removable(self) -> "Study":
        plan, unit = self.counterfactuals, self.source.subset.unit
        if plan and "random_matched" in plan.orders and unit == "example":
            raise ValueError(
                "counterfactuals.orders: random_matched is for classes, of which some have more "
                "images than others; use random for examples"
            )
        for target, settings in self.targets.items():
            for name in settings.lists:
                if plan is None:
                    raise ValueError(
                        f"targets.{target}.lists: {name!r} is to be removed, but nothing is "
                        f"retrained; add `counterfactuals`"
                    )
                if name in (*plan.lists, *self.surrogate_names):
                    raise ValueError(
                        f"targets.{target}.lists: {name!r} is also the name of one of "
                        f"counterfactuals.lists or of a surrogate; choose another one"
                    )
        return self

    @model_validator(mode="after")
    def _held_against(self) -> "Study":
        plan = self.counterfactuals
        known = (*get_args(Order), *self.surrogate_names)
        unknown = [order for order in (plan.orders if plan else []) if order not in known]
        if unknown:
            raise ValueError(
                f"counterfactuals.orders: {unknown[0]!r} is neither {', '.join(get_args(Order))} "
                f"nor one of `surrogates`; correct it, or add it there"
            )
        if self.surrogates is None:
            return self
        if not self.estimates or self.source.subset.unit != "class":
            raise ValueError(
                "surrogates: they score classes, and are held against the influences of classes, "
                "which this study does not estimate; remove `surrogates`"
            )
        both = [name for name in self.surrogates.lists if plan and name in plan.lists]
        if both:
            raise ValueError(
                f"surrogates.lists: {both[0]!r} is the name of one of counterfactuals.lists, too; "
                f"choose another one"
            )
        if plan and self.surrogates.methods and self.surrogates.checkpoints > plan.replicates:
            raise ValueError(
                f"surrogates.checkpoints: {self.surrogates.checkpoints}, but "
                f"counterfactuals.replicates trains {plan.replicates} on all classes; lower the "
                f"first, or raise the second"
            )
        return self

    @property
    def surrogate_names(self) -> list[str]:
        """The names of all surrogates."""
        return self.surrogates.names if self.surrogates else []

    @property
    def full_models(self) -> list[Removal]:
        """The jobs whose models, trained on all classes, surrogates look through."""
        if self.surrogates is None or not self.surrogates.methods:
            return []
        plan, wanted = self.counterfactuals, self.surrogates.checkpoints
        jobs = plan.jobs if plan else [range(wanted)]
        return [Removal.baseline(replicates) for replicates in jobs if replicates.start < wanted]

    @property
    def ranked_by(self) -> Estimator:
        """The estimator whose influences make the ranking."""
        chosen = self.counterfactuals and self.counterfactuals.estimator
        return chosen or self.influence.estimators[0]

    @property
    def proof_fraction(self) -> float:
        """Share of each target class's test images that make no ranking, but prove it."""
        return self.counterfactuals.proof_fraction if self.counterfactuals else 0

    @property
    def folder(self) -> Path:
        """Return the folder of all results of the study."""
        return self.results / self.study

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
        return set().union(*(recipe.network_resolutions for recipe in recipes))

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
        """Return all that is removed for the curves of one (target, mode), each once.

        Raises:
            UserError: see `Counterfactuals.points`.
        """
        plan = self.counterfactuals
        if plan is None:
            return []
        surrogates = self.surrogate_names
        first = self.targets[target].modes[0]  # a surrogate says the same in all modes
        removals = [
            Removal.at(
                order,
                count,
                replicates,
                target,
                first if order in surrogates else mode,
                budget,
                surrogates,
            )
            for budget in plan.budgets
            for order, count in plan.points
            for replicates in plan.jobs
        ]
        removals += [
            Removal.of_list(target, name, listed, replicates, budget)
            for budget in plan.budgets
            for name, listed in self.targets[target].lists.items()
            for replicates in plan.jobs
        ]
        return list(dict.fromkeys(removals))

    @property
    def all_removals(self) -> dict[str, Removal]:
        """The removals of all targets by name, each once, as targets share some of them.

        The baseline is among them where surrogates need it, too.
        """
        removed = [
            removal for target, mode in self.transfers for removal in self.removals(target, mode)
        ]
        return {removal.name: removal for removal in [*removed, *self.full_models]}

    @property
    def estimates(self) -> bool:
        """Whether influences are estimated: only if models differ in what they see."""
        return self.source.subset.listed is None

    @property
    def subsets_of_one_size(self) -> bool:
        """Whether models see equally many units, so that a unit takes the place of another.

        Influences then say how much better a unit is than the average one, not than none.
        """
        return self.source.checkpoints is None

    @property
    def compares_targets(self) -> bool:
        """Whether there are influences on several targets to compare."""
        return self.estimates and len(self.targets) > 1

    @property
    def least_units(self) -> int:
        """The number of source units that the subset and the removals need at least.

        Raises:
            UserError: see `Counterfactuals.points`.
        """
        points = self.counterfactuals.points if self.counterfactuals else []
        removed = max((count for _, count in points), default=0)
        return max(removed + 2, self.source.subset.least_units)


def check_units(dataset: str, unit: Unit, units: int, least: int) -> None:
    """Check that a source data set has the classes or examples that a study needs.

    Raises:
        UserError: it has fewer.
    """
    if units < least:
        raise UserError(
            f"data set {dataset!r}: {units} {PLURAL[unit]}, but the study needs at least {least}, "
            f"so that a subset sees one and misses one, and two are left after a removal; change "
            f"source.subset or counterfactuals.counts, or shorten counterfactuals.lists."
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


def read_study(paths: Sequence[Path]) -> Study:
    """Read a study from its files: later ones add keys to earlier ones, and replace values.

    Raises:
        UserError: see `read_yaml` and `check_study`, which names the last of the files.
    """
    values = functools.reduce(updated, map(read_yaml, paths))
    return check_study(values, str(paths[-1]))
