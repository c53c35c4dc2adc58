"""The steps that train one model: loss, optimizer and learning rates."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.sgd import sgd

from transfer_influence.config.recipe import Recipe
from transfer_influence.errors import UserError
from transfer_influence.models.building import head_of, parameter_groups
from transfer_influence.training.schedule import learning_rates


class Optimization:
    """Stochastic gradient descent on one model, as its recipe says.

    Attributes:
        batch_size: images a step.
        steps: in an epoch; images that fill no batch are left out of it.
        epochs: how many, of which the last one may be cut short.
        resolutions: side of the images in each epoch, in pixels.
        loss: of logits (n, classes) and labels (n,), the mean over the batch.
        rate: learning rate of the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        labels: np.ndarray,
        device: torch.device,
        as_for: int | None = None,
    ) -> None:
        """Prepare the steps.

        Args:
            model: on `device`.
            recipe: how to train it.
            labels: int64 (n,), of the training images.
            device: where.
            as_for: take as many steps, at the same rates, as with that many images; None for n.

        Raises:
            UserError: there are fewer than two images, or too few steps for the learning rate ever
                to leave 0.
        """
        # A target with a handful of images still trains: one batch of all it has.
        self.batch_size = min(recipe.batch_size, len(labels))
        if self.batch_size < 2:
            raise UserError(f"{len(labels)} training images; give it at least 2.")
        self.steps = len(labels) // self.batch_size
        images = len(labels) if as_for is None else as_for
        planned = images // min(recipe.batch_size, images)  # steps in an epoch of the schedule
        schedule = learning_rates(recipe, planned)
        self.all_steps = self._left = len(schedule)
        self.epochs = -(-len(schedule) // self.steps)
        self.resolutions = [
            recipe.training_resolutions[epoch * self.steps // planned]
            for epoch in range(self.epochs)
        ]
        if not schedule.any():
            raise UserError(
                f"{len(schedule)} step(s) in all, at learning rate 0; raise the recipe's epochs or "
                f"lower its batch_size ({recipe.batch_size})."
            )
        self.rate = 0.0
        self._rates = iter(schedule)
        self._optimizer = SGD(parameter_groups(model, recipe), recipe.momentum)
        scaled = device.type == "cuda" and recipe.precision == "float16"
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.loss = training_loss(recipe, labels, head_of(model).out_features).to(device)

    @property
    def steps_left(self) -> int:
        """Steps in the epoch that begins now."""
        return min(self.steps, self._left)

    def step(self, loss: torch.Tensor) -> None:
        """Change the model's parameters so that the loss of a batch falls."""
        self.rate = next(self._rates)
        self._left -= 1
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer, rate=self.rate)  # type: ignore[arg-type]
        self._scaler.update()


class SGD:
    """Stochastic gradient descent with momentum, by torch's own fused kernel.

    The steps are those of `torch.optim.SGD`, bit by bit. That class imports torch's compiler when
    it is first used, which takes a second of each job. A gradient scaler takes this one as well.

    Attributes:
        param_groups: dictionaries of `params`, a list, and their `weight_decay`.
    """

    def __init__(self, param_groups: list[dict[str, Any]], momentum: float) -> None:
        self.param_groups = param_groups
        self._momentum = momentum
        self._buffers: dict[torch.Tensor, torch.Tensor | None] = {}

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Change the parameters by their gradients, at a learning rate."""
        for group in self.param_groups:
            trained = [one for one in group["params"] if one.grad is not None]
            buffers = [self._buffers.get(one) for one in trained]
            sgd(
                trained,
                [one.grad for one in trained],
                buffers,
                weight_decay=group["weight_decay"],
                momentum=self._momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                fused=True,
            )
            self._buffers.update(zip(trained, buffers, strict=True))


def training_loss(recipe: Recipe, labels: np.ndarray, classes: int) -> nn.Module:
    """Return the loss of logits (n, classes) and labels (n,), the mean over images.

    Args:
        recipe: weights of the classes, and smoothing.
        labels: int64 (n,), of all training images.
        classes: the number of classes.
    """
    weights = balanced_weights(labels, classes) if recipe.class_weights == "balanced" else None
    return nn.CrossEntropyLoss(weights, label_smoothing=recipe.label_smoothing)


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
