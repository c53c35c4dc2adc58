"""Train one model."""

import logging
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from transfer_influence.config.recipe import Recipe, TargetRecipe
from transfer_influence.datasets.loaders import Loader
from transfer_influence.datasets.sidecar import Sidecar
from transfer_influence.errors import UserError
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
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    scaler = torch.amp.GradScaler(
        device.type, enabled=device.type == "cuda" and recipe.precision == "float16"
    )
    model.train()
    if isinstance(recipe, TargetRecipe) and recipe.batchnorm == "frozen":
        freeze_batchnorm(model)
    for epoch in range(recipe.epochs):
        started = time.monotonic()
        order = epoch_order(examples, seeds.order, epoch)[: steps * batch_size]
        total = torch.zeros((), device=device)
        batches = loader.batches(order, batch_size, augmentation_key(seeds.augmentation, epoch))
        for images, labels in batches:
            for group in optimizer.param_groups:
                group["lr"] = next(rates)
            optimizer.zero_grad(set_to_none=True)
            with mixed_precision(recipe, device):
                logits = model(normalize(images))
                loss = functional.cross_entropy(
                    logits, labels, label_smoothing=recipe.label_smoothing
                )
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            total += loss.detach()
        mean_loss = total.item() / steps
        log.info(
            "%s: epoch %d/%d, loss %.4f, learning rate %.4g, %.1f s",
            *(name, epoch + 1, recipe.epochs, mean_loss),
            *(optimizer.param_groups[0]["lr"], time.monotonic() - started),
        )
        if not np.isfinite(mean_loss):
            raise NotFiniteError(
                f"{name} (seeds {seeds}): the loss is {mean_loss} after epoch {epoch + 1}; lower "
                f"the recipe's learning_rate ({recipe.learning_rate})."
            )


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep running means and variances as they are while the rest of the model trains."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
