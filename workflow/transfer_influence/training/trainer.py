"""What all models of a job share, and how one of them is trained and evaluated."""

import contextlib
import copy
import functools
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.datasets.held_out import hold_out
from transfer_influence.datasets.loaders import Loader, Split, open_loader
from transfer_influence.datasets.sidecar import Sidecar, read_sidecar
from transfer_influence.datasets.staging import staged
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions, all_devices
from transfer_influence.models.building import build_model, head_of, place
from transfer_influence.outcomes.evaluation import Evaluation, Scores, score
from transfer_influence.outcomes.rows import Effort
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training.devices import best_device
from transfer_influence.training.features import (
    FeatureLoader,
    FrozenModel,
    Network,
    keeps_features,
    only_head_trains,
)
from transfer_influence.training.heads import solve_head
from transfer_influence.training.optimization import Optimization, training_loss

log = logging.getLogger(__name__)

HELD_OUT = 1  # separates the draw of held-out images from that of the order of examples

# Pixels to evaluate at a time, where a batch of training has fewer: enough to fill the device.
EVALUATED_PIXELS = {"cpu": 2**19, "cuda": 2**24}


class NotFiniteError(UserError):
    """A model's loss is not a number any more; it has no outcomes."""


@contextlib.contextmanager
def open_trainer(data: Path, recipe: Recipe, options: JobOptions) -> Iterator["Trainer"]:
    """Yield the trainer of one process of a job; others of the job run this very program too.

    Args:
        data: folder of the converted data set; it is read from the job's scratch folder.
        recipe: how to train and evaluate.
        options: how to run.
    """
    with all_devices(options) as workers, staged(data, options.scratch) as folder:
        yield Trainer(folder, recipe, best_device(), workers)


class Trainer:
    """A data set, a recipe and a device: what all models of a job share.

    Attributes:
        recipe: how models are trained and evaluated.
        device: where.
        classes: how many classes the data set has.
        normalize: from uint8 images to float images.
    """

    def __init__(self, folder: Path, recipe: Recipe, device: torch.device, workers: int) -> None:
        """Read what the data set says of itself.

        Args:
            folder: of the converted data set.
            recipe: as above.
            device: as above.
            workers: threads that decode images.
        """
        sidecar = read_sidecar(folder / "dataset.json")
        self.recipe = recipe
        self.device = device
        self.classes = len(sidecar.classes)
        self.normalize: nn.Module = Normalize(sidecar, device)
        self._folder = folder
        self._workers = workers

    @functools.cached_property
    def train_loader(self) -> Loader:
        """The training images, opened when they are first asked for."""
        return open_loader(self._folder, "train", self.recipe, self.device, self._workers)

    @functools.cached_property
    def test_loader(self) -> Loader:
        """The test images, opened when they are first asked for."""
        return open_loader(self._folder, "test", self.recipe, self.device, self._workers)

    def with_recipe(self, recipe: Recipe) -> "Trainer":
        """Return a trainer with another recipe and the loaders that are open already."""
        other = copy.copy(self)
        other.recipe = recipe
        return other

    def build(self, architecture: Architecture, seed: int) -> nn.Module:
        """Return a new network on the device, with an output for each class of the data set."""
        return place(build_model(architecture, self.classes, seed), self.device)

    def fit(
        self,
        model: nn.Module,
        examples: np.ndarray,
        seeds: TrainingSeeds,
        name: str,
        *,
        as_for: int | None = None,
        test: Callable[[], Evaluation] | None = None,
        watch: Callable[[int, dict[str, float]], None] | None = None,
    ) -> Effort:
        """Train the parameters of a model that require gradients, in place.

        Args:
            model: on the trainer's device.
            examples: int64 (n,), the training images to train on.
            seeds: for the order of the examples and their augmentation.
            name: what to call the model in the log and in errors.
            as_for: take as many steps, at the same learning rates, as with that many examples.
            test: evaluates the model as it is on test images, after the epochs that the recipe
                says; it decides nothing.
            watch: told the number of each epoch, counted from 1, and what is known of it, by name.

        Returns:
            The images that it was trained on, and the steps taken.

        Raises:
            UserError: there are fewer than two examples, or too few steps for the learning rate
                ever to leave 0; or the best epoch is to be kept and no class has two examples.
            NotFiniteError: the loss is not finite.
        """
        log.info("%s: starts, seeds %s", name, seeds)
        held_out = np.empty(0, np.int64)
        if self.recipe.keep == "best":
            every = len(examples)
            examples, held_out = self._held_out(examples, seeds, name)
            as_for = as_for and round(as_for * len(examples) / every)
        labels = self.train_loader.labels[examples]
        try:
            optimization = Optimization(model, self.recipe, labels, self.device, as_for)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        best = _Best(model)
        loader, network = self._inputs(model)
        for epoch in range(optimization.epochs):
            started = time.monotonic()
            prepare_for_training(model, self.recipe)  # each time, as an evaluation undoes it
            loss = self._epoch(loader, network, optimization, examples, seeds, epoch)
            rate, seconds = optimization.rate, time.monotonic() - started
            told = f"{name}: epoch {epoch + 1}/{optimization.epochs}"
            log.info("%s, loss %.4f, learning rate %.4g, %.1f s", told, loss, rate, seconds)
            if not np.isfinite(loss):
                raise NotFiniteError(
                    f"{name} (seeds {seeds}): the loss is {loss} after epoch {epoch + 1}; lower "
                    f"the recipe's learning_rate ({self.recipe.learning_rate})."
                )
            resolution = optimization.resolutions[epoch]
            known = {"train/loss": loss, "learning_rate": rate, "resolution": resolution}
            if self.recipe.is_evaluated(epoch, optimization.epochs):
                if test is not None:
                    found = test()
                    log.info("%s, test accuracy %.4f, loss %.4f", told, found.accuracy, found.loss)
                    known |= {"test/accuracy": found.accuracy, "test/loss": found.loss}
                if len(held_out):
                    accuracy = self.evaluate(model, held_out, "train").accuracy
                    log.info("%s, validation accuracy %.4f", told, accuracy)
                    known["validation/accuracy"] = accuracy
                    best.keep(accuracy)
            if watch is not None:
                watch(epoch + 1, known)
        best.restore()
        return Effort(len(examples), optimization.all_steps)

    def _held_out(
        self, examples: np.ndarray, seeds: TrainingSeeds, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Divide examples into those to train on and those to choose the epoch by."""
        labels = self.train_loader.labels[examples]
        random = np.random.default_rng((seeds.order, HELD_OUT))
        left, held_out = hold_out(labels, self.recipe.validation_fraction, random)
        if not len(held_out):
            raise UserError(
                f"{name}: no class has two training images, so none can be held out to choose the "
                f"best epoch; set the recipe's keep to last."
            )
        return examples[left], examples[held_out]

    def solve_head(self, model: nn.Module, examples: np.ndarray, name: str) -> None:
        """Fit the head of a model to its features, in place, as the recipe's `head` says.

        Args:
            model: on the trainer's device.
            examples: int64 (n,), the training images to fit it to.
            name: what to call the model in the log and in errors.

        Raises:
            UserError: there are fewer than two examples.
            NotFiniteError: the loss is not finite.
        """
        assert isinstance(self.recipe, TargetRecipe)
        log.info("%s: starts", name)
        started = time.monotonic()
        if len(examples) < 2:
            raise UserError(f"{name}: {len(examples)} training images; give it at least 2.")
        model.eval()
        resolution = self.recipe.training_resolutions[-1]
        batches = self.train_loader.batches(examples, self.evaluation_batch_size, None, resolution)
        frozen = self.frozen(model)
        parts = [(frozen.features(images), labels) for images, labels in batches]
        features, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        loss = training_loss(self.recipe, self.train_loader.labels[examples], self.classes)
        penalties = self.recipe.head.penalties
        solved = solve_head(head_of(model), features, labels, loss.to(self.device), penalties)
        seconds = time.monotonic() - started
        log.info("%s: loss %.4f, l2 %.4g, %.1f s", name, solved.loss, solved.penalty, seconds)
        if not np.isfinite(solved.loss):
            raise NotFiniteError(f"{name}: the loss is {solved.loss}; raise the recipe's head.l2.")

    def keeps_features(self, model: nn.Module) -> bool:
        """Tell whether a model is trained on features that are computed once."""
        prepare_for_training(model, self.recipe)
        if not only_head_trains(model):
            return False
        return keeps_features(self.frozen(model), self.train_loader, self.recipe)

    def _inputs(self, model: nn.Module) -> tuple[Loader, Network]:
        """Return what epochs read their batches from, and what makes logits of these.

        Images and the whole model; or, where that is the same training, features that are kept and
        the head.
        """
        frozen = self.frozen(model)
        if self.keeps_features(model):
            features = FeatureLoader(
                self.train_loader, frozen, self.recipe, self.evaluation_batch_size
            )
            return features, frozen.head
        return self.train_loader, frozen.network

    def frozen(self, model: nn.Module) -> FrozenModel:
        """Return a model with what runs it, as a whole and from its features on."""
        network = nn.Sequential(self.normalize, model)
        return FrozenModel(model, self._network(network), self._network(head_of(model)))

    def _network(self, module: nn.Module) -> Network:
        """Return what runs a module in the precision of the recipe."""

        def run(inputs: torch.Tensor) -> torch.Tensor:
            with mixed_precision(self.recipe, self.device):
                return module(inputs)

        return run

    def _epoch(
        self,
        loader: Loader,
        network: Network,
        optimization: Optimization,
        examples: np.ndarray,
        seeds: TrainingSeeds,
        epoch: int,
    ) -> float:
        """Train a model for one epoch; return its mean loss."""
        batch_size, steps = optimization.batch_size, optimization.steps_left
        order = epoch_order(examples, seeds.order, epoch)[: steps * batch_size]
        key = augmentation_key(seeds.augmentation, epoch)
        resolution = optimization.resolutions[epoch]
        total = torch.zeros((), device=self.device)
        for inputs, labels in loader.batches(order, batch_size, key, resolution):
            with mixed_precision(self.recipe, self.device):
                loss = optimization.loss(network(inputs), labels)
            optimization.step(loss)
            total += loss.detach()
        return total.item() / steps

    @property
    def evaluation_batch_size(self) -> int:
        """Images to evaluate at a time.

        At least those of a batch of training, which takes more memory; more where images are small.
        """
        side = self.recipe.upsample_to or self.recipe.evaluation_resolution
        return max(self.recipe.batch_size, EVALUATED_PIXELS[self.device.type] // side**2)

    @torch.inference_mode()
    def evaluate(
        self, model: nn.Module, examples: np.ndarray | None = None, split: Split = "test"
    ) -> Evaluation:
        """Evaluate a model on images in their test view.

        Args:
            model: on the trainer's device.
            examples: int64 (n,), which images of the split; None for all.
            split: of the data set.
        """
        recipe, loader = self.recipe, self.test_loader if split == "test" else self.train_loader
        if examples is None:
            examples = np.arange(len(loader.labels))
        model.eval()
        network = self._network(nn.Sequential(self.normalize, model))
        scores: list[Scores] = []
        resolution, batch_size = recipe.evaluation_resolution, self.evaluation_batch_size
        for images, labels in loader.batches(examples, batch_size, None, resolution):
            logits = network(images)
            scores.append(score(logits.float(), labels))
        per_class = isinstance(recipe, TargetRecipe) and recipe.accuracy == "per_class"
        return Evaluation.of(scores, loader.labels[examples], logits.shape[1], per_class)


class Normalize(nn.Module):
    """Turn uint8 images into float images with mean 0 and standard deviation 1 a channel.

    Done here, on the device, so that loaders move a quarter of the bytes.
    """

    def __init__(self, sidecar: Sidecar, device: torch.device) -> None:
        super().__init__()
        self.mean = torch.tensor(sidecar.mean, device=device).view(1, 3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(sidecar.std, device=device).view(1, 3, 1, 1) * 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() - self.mean) * self.scale


def mixed_precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the autocast context of a recipe; a CPU always computes in float32."""
    enabled = device.type == "cuda" and recipe.precision != "float32"
    return torch.autocast(device.type, getattr(torch, recipe.precision), enabled=enabled)


def epoch_order(examples: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return `examples` in the random order of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(examples)


def augmentation_key(seed: int, epoch: int) -> int:
    """Return the key of one epoch's augmentation, below 2**63."""
    return int(np.random.default_rng([seed, epoch]).integers(2**63))


def prepare_for_training(model: nn.Module, recipe: Recipe) -> None:
    """Let a model train, but for the BatchNorm statistics that a recipe freezes."""
    model.train()
    if isinstance(recipe, TargetRecipe) and recipe.batchnorm == "frozen":
        freeze_batchnorm(model)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep running means and variances as they are while the rest of the model trains."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class _Best:
    """The weights of a model when its accuracy was best."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._accuracy = -np.inf
        self._state: dict[str, torch.Tensor] = {}

    def keep(self, accuracy: float) -> None:
        """Keep the weights as they are now if they are better than all before."""
        if accuracy > self._accuracy:
            self._accuracy = accuracy
            state = self._model.state_dict().items()
            self._state = {name: value.clone() for name, value in state}

    def restore(self) -> None:
        """Give the model its best weights back, if any were kept."""
        if self._state:
            self._model.load_state_dict(self._state)
