"""How a model is built and trained."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from transfer_influence.config.settings import Settings


class CyclicSchedule(Settings):
    """Linear from zero to the peak rate at `peak_epoch`, then to zero at the end."""

    kind: Literal["cyclic"] = "cyclic"
    peak_epoch: float = Field(ge=0, description="Epoch at which the learning rate is highest.")


class StepSchedule(Settings):
    """Multiply the rate by `factor` every `every` epochs."""

    kind: Literal["step"]
    every: PositiveInt = Field(description="Epochs between two steps.")
    factor: PositiveFloat = Field(description="What each step multiplies the learning rate by.")


class MultiStepSchedule(Settings):
    """Multiply the rate by `factor` at each listed epoch."""

    kind: Literal["multi_step"]
    epochs: list[PositiveInt] = Field(description="Epochs at which the learning rate drops.")
    factor: PositiveFloat = Field(description="What each drop multiplies the learning rate by.")


Schedule = Annotated[CyclicSchedule | StepSchedule | MultiStepSchedule, Field(discriminator="kind")]


class Augmentation(Settings):
    """What training images go through; test images are only cropped in the centre."""

    crop: Literal["center", "padded", "random_resized"] = Field(
        "center",
        description="`center`: nothing random; `padded`: shift by up to `padding` pixels, filling "
        "with black; `random_resized`: a random part (8-100 % of the area), resized.",
    )
    padding: int = Field(4, ge=1, description="Pixels, for `padded` only.")
    flip: bool = Field(False, description="Mirror every other image left to right, at random.")


class Recipe(Settings):
    """One training run, for source and target models alike."""

    epochs: PositiveInt = Field(description="Passes over the training images.")
    batch_size: int = Field(
        ge=2, description="Images a step; the last, incomplete batch is left out."
    )
    learning_rate: PositiveFloat = Field(description="Peak learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay, on all trained parameters.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label spread evenly.")
    schedule: Schedule = Field(description="How the learning rate moves, step by step.")
    resolution: PositiveInt = Field(
        description="Side of the square images the model sees, in pixels."
    )
    test_crop: float = Field(
        1.0, gt=0, le=1, description="Share of the shorter side that the central test crop keeps."
    )
    augmentation: Augmentation = Field(Augmentation(), description="See below.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="Mixed precision on a GPU; a CPU always uses float32."
    )
    loader: Literal["auto", "resident", "stream"] = Field(
        "auto",
        description="`resident`: decode all images once and keep them in memory, on the GPU where "
        "there is one; `stream`: FFCV's compiled pipeline; `auto`: by decoded size.",
    )

    @model_validator(mode="after")
    def _peak_within_epochs(self) -> "Recipe":
        if isinstance(self.schedule, CyclicSchedule) and self.schedule.peak_epoch > self.epochs:
            raise ValueError(
                f"schedule.peak_epoch {self.schedule.peak_epoch} lies after the last of "
                f"{self.epochs} epochs; lower it"
            )
        return self


class TargetRecipe(Recipe):
    """A recipe for transfer, where BatchNorm's running statistics are a choice of their own."""

    batchnorm: Literal["train", "frozen"] = Field(
        "train",
        description="`train`: running statistics adapt to the target, also in `fixed` mode, as in "
        "the published runs; `frozen`: they stay those of the source.",
    )


class Architecture(Settings):
    """Which network."""

    name: str = Field(
        "small_resnet",
        description="`small_resnet` (for images of about 32 pixels) or any classifier of "
        "`torchvision.models`, such as `resnet18`.",
    )
    width: PositiveInt = Field(16, description="Channels of the first stage, `small_resnet` only.")
