"""How a model is built and trained."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, Tag, model_validator

from transfer_influence.config.settings import Settings

Accuracy = Literal["overall", "per_class"]


class CyclicSchedule(Settings):
    """Linear from zero to the peak rate at `peak_epoch`, then to zero at the end."""

    kind: Literal["cyclic"] = Field(
        "cyclic", description="One rise and one fall of the learning rate.", examples=["cyclic"]
    )
    peak_epoch: float = Field(
        ge=0, description="Epoch at which the learning rate is highest.", examples=[2]
    )


class StepSchedule(Settings):
    """Multiply the rate by `factor` every `every` epochs."""

    kind: Literal["step"] = Field(
        description="The learning rate drops at equal intervals.", examples=["step"]
    )
    every: PositiveInt = Field(description="Epochs between two steps.", examples=[5])
    factor: PositiveFloat = Field(
        description="What each step multiplies the learning rate by.", examples=[0.1]
    )


class MultiStepSchedule(Settings):
    """Multiply the rate by `factor` at each listed epoch."""

    kind: Literal["multi_step"] = Field(
        description="The learning rate drops at listed epochs.", examples=["multi_step"]
    )
    epochs: list[PositiveInt] = Field(
        description="Epochs at which the learning rate drops.", examples=[[8, 12]]
    )
    factor: PositiveFloat = Field(
        description="What each drop multiplies the learning rate by.", examples=[0.1]
    )


Schedule = Annotated[CyclicSchedule | StepSchedule | MultiStepSchedule, Field(discriminator="kind")]


class ResolutionRamp(Settings):
    """Small images first, for speed; larger ones at the end, in steps."""

    start: PositiveInt = Field(
        description="Side of the images up to `start_epoch`, in pixels.", examples=[160]
    )
    end: PositiveInt = Field(
        description="Side of the images from `end_epoch` on, in pixels.", examples=[192]
    )
    start_epoch: int = Field(
        ge=0,
        description="Last epoch, counted from 0, at `start`; from there the side grows evenly.",
        examples=[11],
    )
    end_epoch: int = Field(
        ge=0, description="First epoch, counted from 0, at `end`.", examples=[13]
    )
    multiple: PositiveInt = Field(
        32,
        description="Sides are whole multiples of so many pixels; half-way, the even multiple.",
        examples=[32],
    )

    @model_validator(mode="after")
    def _rises(self) -> "ResolutionRamp":
        if self.end < self.start:
            raise ValueError(f"end {self.end} is below start {self.start}; raise it")
        if self.end_epoch < self.start_epoch:
            raise ValueError(
                f"end_epoch {self.end_epoch} lies before start_epoch {self.start_epoch}; raise it"
            )
        for side in (self.start, self.end):
            if side % self.multiple:
                raise ValueError(
                    f"{side} is no multiple of {self.multiple}; change it, or `multiple`"
                )
        return self

    def at(self, epoch: int) -> int:
        """Return the side of the images in an epoch, counted from 0, in pixels."""
        if epoch <= self.start_epoch:
            return self.start
        if epoch >= self.end_epoch:
            return self.end
        share = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        exact = self.start + share * (self.end - self.start)
        return round(exact / self.multiple) * self.multiple


def _form_of_resolution(value: Any) -> str:
    return "ramp" if isinstance(value, dict | ResolutionRamp) else "side"


# Told apart by hand, so that a mistake in a ramp is not answered as if a number had been meant.
Resolution = Annotated[
    Annotated[PositiveInt, Tag("side")] | Annotated[ResolutionRamp, Tag("ramp")],
    Discriminator(_form_of_resolution),
]


class Augmentation(Settings):
    """What training images go through; test images are only cropped in the centre."""

    crop: Literal["center", "padded", "random_resized"] = Field(
        "center",
        description="`center`: nothing random, the part that `test_crop` keeps; `padded`: that "
        "part, shifted by up to `padding` pixels, filling with black; `random_resized`: a random "
        "part (8-100 % of the area), resized.",
        examples=["random_resized"],
    )
    padding: int = Field(4, ge=1, description="Pixels, for `padded` only.", examples=[4])
    flip: bool = Field(
        False, description="Mirror every other image left to right, at random.", examples=[True]
    )


class Recipe(Settings):
    """One training run, for source and target models alike."""

    epochs: PositiveInt = Field(description="Passes over the training images.", examples=[16])
    batch_size: int = Field(
        ge=2,
        description="Images a step; the last, incomplete batch is left out.",
        examples=[1024],
    )
    learning_rate: PositiveFloat = Field(description="Peak learning rate.", examples=[0.5])
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.", examples=[0.9])
    weight_decay: float = Field(
        5e-4, ge=0, description="Weight decay, on all trained parameters.", examples=[5e-5]
    )
    weight_decay_norm: float | None = Field(
        None,
        ge=0,
        description="Weight decay on the scales and shifts of normalisation layers (batch, layer, "
        "group, instance) in place of `weight_decay`; without it, they have the same.",
        examples=[0.0],
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the label spread evenly.", examples=[0.1]
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="Weights of the classes in the training loss. `balanced`: N / (C · n) for a "
        "class with n of the N training images, C classes having any.",
        examples=["balanced"],
    )
    schedule: Schedule = Field(
        description="How the learning rate moves, step by step.",
        examples=[{"kind": "cyclic", "peak_epoch": 2}],
    )
    resolution: Resolution = Field(
        description="Side of the square training images, in pixels: one number, or a ramp over "
        "the epochs.",
        examples=[{"start": 160, "end": 192, "start_epoch": 11, "end_epoch": 13}],
    )
    test_resolution: PositiveInt | None = Field(
        None,
        description="Side of the square test images, in pixels; without it, that of the training "
        "images in the last epoch.",
        examples=[224],
    )
    upsample_to: PositiveInt | None = Field(
        None,
        description="Enlarge all images to this side, in pixels, by repeating pixels, after all "
        "else: so that a network for large images can see small ones. Without it, the network sees "
        "them as they are.",
        examples=[224],
    )
    test_crop: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the shorter side that the central crop keeps, of test images and "
        "of training images that are not cropped at random.",
        examples=[0.875],
    )
    augmentation: Augmentation = Field(
        Augmentation(),
        description="What happens to training images.",
        examples=[{"crop": "random_resized", "flip": True}],
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16",
        description="Mixed precision on a GPU (`float16` with a scaled loss); a CPU always uses "
        "float32.",
        examples=["float16"],
    )
    loader: Literal["auto", "resident", "stream"] = Field(
        "auto",
        description="`resident`: decode all images once and keep them in memory, on the GPU where "
        "there is one; `stream`: FFCV's compiled pipeline; `auto`: by decoded size.",
        examples=["stream"],
    )
    evaluate_every: PositiveInt | None = Field(
        None,
        description="Epochs between two evaluations during training, on the test images for the "
        "log and TensorBoard, and for `keep`; the last epoch always has one. Without it, there is "
        "none before the end.",
        examples=[5],
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="The weights that a model ends with: those after the last epoch, or after the "
        "evaluated epoch with the best accuracy on training images that are held out, the first "
        "of equals. `best` needs `evaluate_every`.",
        examples=["last"],
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="For `keep: best`: share of each class's training images that a model is not "
        "trained on, at least one of each class, to choose the epoch by.",
        examples=[0.2],
    )

    @model_validator(mode="after")
    def _peak_within_epochs(self) -> "Recipe":
        if isinstance(self.schedule, CyclicSchedule) and self.schedule.peak_epoch > self.epochs:
            raise ValueError(
                f"schedule.peak_epoch {self.schedule.peak_epoch} lies after the last of "
                f"{self.epochs} epochs; lower it"
            )
        return self

    @model_validator(mode="after")
    def _ramp_within_epochs(self) -> "Recipe":
        if isinstance(self.resolution, ResolutionRamp) and self.resolution.end_epoch >= self.epochs:
            raise ValueError(
                f"resolution.end_epoch {self.resolution.end_epoch} lies after the last of "
                f"{self.epochs} epochs, which are counted from 0; lower it"
            )
        return self

    @model_validator(mode="after")
    def _upsample_enlarges(self) -> "Recipe":
        largest = max(*self.training_resolutions, self.evaluation_resolution)
        if self.upsample_to is not None and self.upsample_to < largest:
            raise ValueError(
                f"upsample_to {self.upsample_to} is below the resolution, {largest}; raise it"
            )
        return self

    @model_validator(mode="after")
    def _best_of_some(self) -> "Recipe":
        if self.keep == "best" and self.evaluate_every is None:
            raise ValueError("keep: best needs evaluations to choose from; give `evaluate_every`")
        return self

    @property
    def training_resolutions(self) -> list[int]:
        """Side of the training images in each epoch, in pixels."""
        if isinstance(self.resolution, ResolutionRamp):
            return [self.resolution.at(epoch) for epoch in range(self.epochs)]
        return [self.resolution] * self.epochs

    @property
    def evaluation_resolution(self) -> int:
        """Side of the test images, in pixels."""
        return self.test_resolution or self.training_resolutions[-1]

    @property
    def network_resolutions(self) -> set[int]:
        """Sides of the images that the network sees, in training and in evaluation, in pixels."""
        if self.upsample_to is not None:
            return {self.upsample_to}
        return {*self.training_resolutions, self.evaluation_resolution}

    def is_evaluated(self, epoch: int, epochs: int) -> bool:
        """Tell whether an epoch, counted from 0, of so many ends with an evaluation."""
        if self.evaluate_every is None:
            return False
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == epochs


class Head(Settings):
    """How a new head on frozen features is trained: in mode `fixed`."""

    solver: Literal["sgd", "lbfgs"] = Field(
        "sgd",
        description="`sgd`: as the recipe trains everything else; `lbfgs`: to the minimum of a "
        "regularised multinomial regression, without learning rate, epochs or seed. The latter "
        "needs `batchnorm: frozen` and images without augmentation, and leaves mode `full` alone.",
        examples=["lbfgs"],
    )
    l2: PositiveFloat | list[PositiveFloat] = Field(
        0.01,
        description="Penalty of `lbfgs`: half of it times the sum of squared weights is added to "
        "the mean loss. Of a list, the one that does best on a fifth of the training images is "
        "used for all of them.",
        examples=[[0.0001, 0.001, 0.01, 0.1]],
    )

    @model_validator(mode="after")
    def _some_penalty(self) -> "Head":
        if self.l2 == []:
            raise ValueError("l2 is an empty list; give it a penalty, such as 0.01")
        return self

    @property
    def penalties(self) -> list[float]:
        """The penalties to choose from."""
        return self.l2 if isinstance(self.l2, list) else [self.l2]


class TargetRecipe(Recipe):
    """A recipe for transfer, with the choices that only a transfer has."""

    batchnorm: Literal["train", "frozen"] = Field(
        "train",
        description="`train`: running statistics adapt to the target, also in `fixed` mode, as in "
        "the published runs; `frozen`: they stay those of the source.",
        examples=["train"],
    )
    accuracy: Accuracy = Field(
        "overall",
        description="What the column `accuracy` holds: the share of correct predictions, or the "
        "mean of the classes' accuracies, over classes with test images. The other one follows "
        "from `class_accuracy` or `is_correct`.",
        examples=["per_class"],
    )
    head: Head = Field(
        Head(),
        description="How the head is trained in mode `fixed`.",
        examples=[{"solver": "lbfgs", "l2": 0.01}],
    )

    @model_validator(mode="after")
    def _features_for_a_solver(self) -> "TargetRecipe":
        if self.head.solver == "sgd":
            return self
        if self.batchnorm != "frozen":
            raise ValueError("head.solver: lbfgs needs features that stay; set batchnorm: frozen")
        if self.augmentation.crop != "center" or self.augmentation.flip:
            raise ValueError(
                "head.solver: lbfgs takes images as they are; set augmentation.crop to center and "
                "augmentation.flip to false"
            )
        return self


class Architecture(Settings):
    """Which network."""

    name: str = Field(
        "small_resnet",
        description="`small_resnet` (for images of about 32 pixels) or any classifier of "
        "`torchvision.models`, such as `resnet18`.",
        examples=["resnet18"],
    )
    width: PositiveInt = Field(
        16, description="Channels of the first stage, `small_resnet` only.", examples=[16]
    )
