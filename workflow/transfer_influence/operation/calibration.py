"""What one model of a stage costs on this device, from a few real steps of training."""

import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import RootModel
from safetensors.torch import save_file
from torch import nn

from transfer_influence.config.recipe import StepSchedule, TargetRecipe
from transfer_influence.config.stages import SourceStage, TransferStage
from transfer_influence.datasets.sidecar import unit_names
from transfer_influence.files import atomic
from transfer_influence.job import JobOptions
from transfer_influence.models.building import freeze_for, load_backbone
from transfer_influence.operation.costs import Calibration, steps_of_model
from transfer_influence.outcomes.evaluation import Evaluation
from transfer_influence.outcomes.rows import Effort, source_row, transfer_row
from transfer_influence.outcomes.tables import write_table
from transfer_influence.outcomes.weights import read_weights
from transfer_influence.provenance import Origin
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.subsets import source_models, training_examples
from transfer_influence.training.devices import device_name
from transfer_influence.training.trainer import Trainer, open_trainer

log = logging.getLogger(__name__)

FEWEST = 3  # steps to warm up, and the fewest to time
LONG_ENOUGH = 5.0  # seconds of training to time, and at most of evaluation
KEPT = 3  # models to make and keep: a busy disk delays one at times
SEEDS = TrainingSeeds(0, 0, 0)


class CalibratedStage(RootModel[SourceStage | TransferStage]):
    """The settings of a stage to calibrate."""


def calibrate(
    stage: SourceStage | TransferStage,
    data: Path,
    output: Path,
    origin: Origin,
    options: JobOptions,
) -> None:
    """Measure what a model costs and write it down, as a `Calibration`.

    Network, images, loader, recipe and device are those of the jobs. Training goes on for
    `LONG_ENOUGH`, but for at least `FEWEST` steps, at each of the recipe's resolutions.

    Args:
        stage: what to measure.
        data: folder of the converted data set.
        output: JSON file to write; a model's weights must fit beside it for a while.
        origin: of the result.
        options: how jobs run.

    Raises:
        UserError: the images or the recipe do not allow it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        open_trainer(data, stage.recipe, options) as trainer,
        tempfile.TemporaryDirectory(dir=output.parent) as room,
    ):
        bench = _Bench(stage, trainer, data, Path(room))
        model = bench.make()
        steps = bench.warm_up(model)
        bench.evaluate(model, bench.batch_size)
        until_warm = process_seconds()
        step = bench.step(model)
        image, _ = bench.evaluate(model, bench.batch_size)
        images = max(bench.batch_size, int(LONG_ENOUGH / image))
        image, evaluation = bench.evaluate(model, images)
        kept = [bench.keep(evaluation) for _ in range(KEPT)]
        device = device_name(trainer.device)
        calibration = Calibration(
            device=device,
            startup=max(0.0, until_warm - steps * step - bench.batch_size * image),
            model=float(np.median([each.seconds for each in kept])),
            step=step,
            evaluation=image * bench.test_images,
            weights_bytes=kept[0].weights_bytes,
            row_bytes=kept[0].row_bytes,
            provenance=json.loads(
                origin.provenance(device_name(trainer.device), process_seconds())
            ),
        )
    with atomic(output) as temporary:
        temporary.write_text(calibration.model_dump_json(indent=2) + "\n")
    log.info(
        "%s: start-up %.1f s, a step %.4f s, an evaluation %.2f s, and %.2f s a model",
        calibration.device,
        calibration.startup,
        calibration.step,
        calibration.evaluation,
        calibration.model,
    )


def process_seconds() -> float:
    """Return for how long this process has run."""
    # The name in brackets may hold anything; the start, in ticks after boot, is 20 fields on.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


@dataclass(frozen=True)
class _Kept:
    """What it takes to make a model and to keep it."""

    seconds: float
    weights_bytes: int
    row_bytes: int


class _Bench:
    """A job's trainer and network, and a stopwatch."""

    def __init__(
        self, stage: SourceStage | TransferStage, trainer: Trainer, data: Path, room: Path
    ) -> None:
        self._stage = stage
        self._trainer = trainer
        self._room = room
        labels = trainer.train_loader.labels
        if isinstance(stage, SourceStage):
            unit = stage.subset.unit
            self._source = source_models(stage, [0], unit_names(data, unit))[0]
            self._examples = training_examples(self._source.mask, unit, labels)
        else:
            self._examples = np.arange(len(labels))
            self._save(trainer.build(stage.architecture, seed=0))
        self.batch_size = max(1, min(stage.recipe.batch_size, len(self._examples)))
        self.test_images = len(trainer.test_loader.labels)

    def make(self) -> nn.Module:
        """Return a model that is ready to train."""
        model = self._trainer.build(self._stage.architecture, seed=0)
        if isinstance(self._stage, TransferStage):
            load_backbone(model, read_weights(self._weights, model=0))
            freeze_for(model, self._stage.mode)
        return model

    def warm_up(self, model: nn.Module) -> int:
        """Train as in `step` until all is imported and compiled; return the number of steps."""
        if self._trainer.keeps_features(model):
            self._training(model)
            return self._steps
        self.train(model, FEWEST)
        return FEWEST

    def step(self, model: nn.Module) -> float:
        """Return the seconds of a step, the mean over the epochs of the recipe.

        On kept features, which the first epochs compute, those of a whole training are shared out.
        """
        if self._trainer.keeps_features(model):
            return self._training(model) / self._steps
        epochs = self._stage.recipe.training_resolutions
        seconds = {}
        for resolution in sorted(set(epochs)):
            seconds[resolution] = self.train(model, FEWEST, resolution)
            steps = int(LONG_ENOUGH / len(set(epochs)) / seconds[resolution])
            if steps > FEWEST:
                seconds[resolution] = self.train(model, steps, resolution)
        return float(np.mean([seconds[resolution] for resolution in epochs]))

    @property
    def _steps(self) -> int:
        """Steps of a whole training."""
        return steps_of_model(self._stage.recipe, len(self._examples))

    def _training(self, model: nn.Module) -> float:
        """Return the seconds that a whole training on kept features takes, or the solution."""
        recipe = self._stage.recipe
        started = time.monotonic()
        if isinstance(recipe, TargetRecipe) and recipe.head.solver == "lbfgs":
            self._trainer.solve_head(model, self._examples, "calibration")
        else:
            trainer = self._trainer.with_recipe(recipe.model_copy(update={"learning_rate": 1e-9}))
            trainer.fit(model, self._examples, SEEDS, "calibration")
        return time.monotonic() - started

    def train(self, model: nn.Module, steps: int, resolution: int | None = None) -> float:
        """Train for some steps, in whole epochs if an epoch has fewer; return seconds a step.

        At one resolution; where none is given, that of the first epoch.
        """
        epoch = min(steps, len(self._examples) // self.batch_size)
        epochs = max(1, steps // max(1, epoch))
        shuffled = np.random.default_rng(0).permutation(self._examples)
        # At a rate that lets no loss run away, and in no step is 0.
        constant = StepSchedule(kind="step", every=epochs, factor=1)
        recipe = self._stage.recipe.model_copy(
            update={
                "epochs": epochs,
                "learning_rate": 1e-9,
                "schedule": constant,
                "resolution": resolution or self._stage.recipe.training_resolutions[0],
            }
        )
        trainer = self._trainer.with_recipe(recipe)
        started = time.monotonic()
        trainer.fit(model, shuffled[: epoch * self.batch_size], SEEDS, "calibration")
        return (time.monotonic() - started) / (epochs * epoch)

    def evaluate(self, model: nn.Module, images: int) -> tuple[float, Evaluation]:
        """Evaluate on some test images, or on all if there are fewer; return seconds an image."""
        examples = np.arange(min(images, self.test_images))
        started = time.monotonic()
        evaluation = self._trainer.evaluate(model, examples)
        return (time.monotonic() - started) / len(examples), evaluation

    def keep(self, evaluation: Evaluation) -> "_Kept":
        """Make a model and write what is kept of one."""
        started = time.monotonic()
        model = self.make()
        table = self._room / "row.parquet"
        images = len(evaluation.is_correct)
        if isinstance(self._stage, SourceStage):
            self._save(model)
            write_table(
                source_row(self._source, evaluation, np.arange(images), Effort()), table, ""
            )
            weights_bytes, share = self._weights.stat().st_size, 1.0
        else:
            write_table(transfer_row(0, evaluation), table, "")
            weights_bytes, share = 0, images / self.test_images
        seconds = time.monotonic() - started
        return _Kept(seconds, weights_bytes, round(table.stat().st_size / share))

    @property
    def _weights(self) -> Path:
        return self._room / "weights.safetensors"

    def _save(self, model: nn.Module) -> None:
        state = model.state_dict().items()
        with atomic(self._weights) as temporary:
            save_file({f"0/{key}": value.cpu().contiguous() for key, value in state}, temporary)
