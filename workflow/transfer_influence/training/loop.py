"""Train one model."""

import logging
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from transfer_influence.config.recipe import Recipe, TargetRecipe
from transfer_influence.datasets.loaders import Loader
from transfer_influence.datasets.sidecar import Sidecar
from transfer_influence.errors import UserError
from transfer_influence.models.building import class_count, parameter_groups
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training.schedule import learning_rates

log = logging.getLogger(__name__)


class NotFiniteError(UserError):
    """A model's loss is not a number any more; it has no outcomes."""


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


def train(
    model: nn.Module,
    loader: Loader,
    examples: np.ndarray,
    normalize: Normalize,
    recipe: Recipe,
    seeds: TrainingSeeds,
    device: torch.device,
    name: str,
    *,
    test: Callable[[], dict[str, float]] | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Train the parameters of `model` that require gradients, in place.

    Args:
        model: on `device`, in channels-last memory.
        loader: the training images.
        examples: int64 (n,), the examples to train on.
        normalize: from uint8 to float.
        recipe: how.
        seeds: for the order of the examples and their augmentation.
        device: where.
        name: what to call the model in the log and in errors.
        test: evaluates `model` as it is, after the epochs that the recipe says; returns numbers by
            name, of which `accuracy` decides which epoch was the best.
        watch: told the number of each epoch, counted from 1, and what is known of it, by name.

    Raises:
        UserError: there are fewer than two examples, or too few steps for the learning rate ever
            to leave 0.
        NotFiniteError: the loss is not finite.
    """
    log.info("%s: starts, seeds %s", name, seeds)
    # A target with a handful of images still trains: one batch of all it has.
    batch_size = min(recipe.batch_size, len(examples))
    if batch_size < 2:
        raise UserError(f"{name}: {len(examples)} training images; give it at least 2.")
    steps = len(examples) // batch_size
    schedule = learning_rates(recipe, steps)
    if not schedule.any():
        raise UserError(
            f"{name}: {len(schedule)} step(s) in all, at learning rate 0; raise the recipe's "
            f"epochs or lower its batch_size ({recipe.batch_size})."
        )
    rates = iter(schedule)
    optimizer = torch.optim.SGD(
        parameter_groups(model, recipe),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        fused=True,
    )
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced_weights(loader.labels[examples], class_count(model)).to(device)
    scaler = torch.amp.GradScaler(
        device.type, enabled=device.type == "cuda" and recipe.precision == "float16"
    )
    best = _Best(model)
    for epoch, resolution in enumerate(recipe.training_resolutions):
        prepare_for_training(model, recipe)  # in every epoch, as an evaluation undoes it
        started = time.monotonic()
        order = epoch_order(examples, seeds.order, epoch)[: steps * batch_size]
        total = torch.zeros((), device=device)
        key = augmentation_key(seeds.augmentation, epoch)
        batches = loader.batches(order, batch_size, key, resolution)
        for images, labels in batches:
            rate = next(rates)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            with mixed_precision(recipe, device):
                logits = model(normalize(images))
                loss = functional.cross_entropy(
                    logits, labels, weights, label_smoothing=recipe.label_smoothing
                )
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
        mean_loss = total.item() / steps
        log.info(
            "%s: epoch %d/%d, loss %.4f, learning rate %.4g, %.1f s",
            *(name, epoch + 1, recipe.epochs, mean_loss, rate, time.monotonic() - started),
        )
        if not np.isfinite(mean_loss):
            raise NotFiniteError(
                f"{name} (seeds {seeds}): the loss is {mean_loss} after epoch {epoch + 1}; lower "
                f"the recipe's learning_rate ({recipe.learning_rate})."
            )
        known = {"train/loss": mean_loss, "learning_rate": rate, "resolution": resolution}
        if test is not None and recipe.is_evaluated(epoch):
            found = test()
            numbers = ", ".join(f"{what} {value:.4f}" for what, value in found.items())
            log.info("%s: epoch %d/%d, test %s", name, epoch + 1, recipe.epochs, numbers)
            known |= {f"test/{what}": value for what, value in found.items()}
            if recipe.keep == "best":
                best.see(found["accuracy"])
        if watch is not None:
            watch(epoch + 1, known)
    best.restore()


class _Best:
    """The weights of a model when its accuracy was best."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._accuracy = -np.inf
        self._state: dict[str, torch.Tensor] = {}

    def see(self, accuracy: float) -> None:
        """Keep the weights as they are now if they are better than all before."""
        if accuracy > self._accuracy:
            self._accuracy = accuracy
            state = self._model.state_dict().items()
            self._state = {name: value.clone() for name, value in state}

    def restore(self) -> None:
        """Give the model its best weights back, if any were seen."""
        if self._state:
            self._model.load_state_dict(self._state)


def balanced_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Return weights of the classes that give each the same share of the loss.

    Args:
        labels: int64 (n,), of the training images.
        classes: the number of classes.

    Returns:
        float32 (classes,), n / (C · count) where C classes have images; 0 for one that has none.
    """
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    weights = np.where(counts > 0, len(labels) / (present * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights).float()


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
