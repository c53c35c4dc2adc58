"""What a frozen backbone makes of each image, computed once instead of in every epoch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from transfer_influence.config.recipe import Recipe
from transfer_influence.datasets.augmentation import flips
from transfer_influence.datasets.loaders import Batch, Loader
from transfer_influence.models.building import head_name, head_of

# Of features that are kept, by device; where they take more, each epoch computes them.
MOST_BYTES = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}
PROBED = 4  # images that tell whether features can be kept

Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class FrozenModel:
    """A model of which only the head trains, and how it is run.

    Attributes:
        model: in the state in which it trains.
        network: from uint8 images to logits, in the precision of the recipe.
        head: from features to logits, in that precision.
    """

    model: nn.Module
    network: Network
    head: Network

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the head is given for some images."""
        return self.seen(images)[0]

    @torch.no_grad()
    def seen(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the head is given for some images, and the logits of the model."""
        given: list[torch.Tensor] = []
        handle = head_of(self.model).register_forward_pre_hook(
            lambda _, inputs: given.append(inputs[0])
        )
        try:
            logits = self.network(images)
        finally:
            handle.remove()
        return given[0], logits

    @torch.no_grad()
    def is_function(self, images: torch.Tensor) -> bool:
        """Tell by a few images whether logits are the head's, of features that never change.

        They are not where the backbone drops units at random, or where something follows the head.
        The model is left in the state of evaluation.
        """
        # A layer that drops little may drop nothing of a few images.
        if any(_drops(module) for module in self.model.modules()):
            self.model.eval()
            return False
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # as if nothing had been drawn
            trained = self.features(images)
            self.model.eval()
            evaluated = self.features(images)
        if evaluated.ndim != 2 or not torch.equal(trained, evaluated):
            return False
        return torch.equal(self.head(evaluated), self.network(images))


def _drops(module: nn.Module) -> bool:
    """Tell whether a layer drops units, or whole branches, at random in training."""
    drops = isinstance(module, nn.modules.dropout._DropoutNd)
    drops |= type(module).__name__ == "StochasticDepth"
    return drops and float(getattr(module, "p", 0.0)) > 0


def only_head_trains(model: nn.Module) -> bool:
    """Tell whether no parameter and no statistics change in training but those of the head.

    Args:
        model: in the state in which it trains.
    """
    head = f"{head_name(model)}."
    frozen = all(
        name.startswith(head) or not parameter.requires_grad
        for name, parameter in model.named_parameters()
    )
    norms = [each for each in model.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    return frozen and not any(norm.training for norm in norms)


def keeps_features(frozen: FrozenModel, loader: Loader, recipe: Recipe) -> bool:
    """Tell whether the features of all epochs can be kept, with the same result as without.

    The model is left in the state of evaluation.

    Args:
        frozen: the model.
        loader: of the training images.
        recipe: how they are shown.
    """
    resolutions = set(recipe.training_resolutions)
    views = views_per_image(recipe) * len(resolutions) * len(loader.labels)
    head = head_of(frozen.model)
    size = head.weight.element_size() * head.in_features * views
    if recipe.augmentation.crop != "center" or size > MOST_BYTES[head.weight.device.type]:
        return False
    probed = np.arange(min(PROBED, len(loader.labels)))
    ((images, _),) = loader.batches(probed, PROBED, None, min(resolutions))
    return frozen.is_function(images)


def views_per_image(recipe: Recipe) -> int:
    """Return how many views of an image the epochs of one resolution show, without random crops."""
    return 2 if recipe.augmentation.flip else 1


class FeatureLoader:
    """Batches as those of a `Loader`, but with features in place of images.

    The view of an image is computed when it is shown for the first time. An image has one view for
    each resolution, or two where images are mirrored at random.
    """

    def __init__(
        self, loader: Loader, frozen: FrozenModel, recipe: Recipe, batch_size: int
    ) -> None:
        """Prepare to compute features.

        Args:
            loader: of the images.
            frozen: the model.
            recipe: how images are shown.
            batch_size: images to compute at a time.
        """
        self.labels = loader.labels
        self._loader = loader
        self._frozen = frozen
        self._recipe = recipe
        self._batch_size = batch_size
        self._known: dict[int, np.ndarray] = {}  # resolution → bool (views,)
        self._features: dict[int, torch.Tensor] = {}  # resolution → (views, d)

    def batches(
        self, examples: np.ndarray, batch_size: int, key: int | None, resolution: int
    ) -> Iterator[Batch]:
        """Yield features (B, d) and labels, see `Loader.batches`."""
        views = views_per_image(self._recipe) * examples + flips(examples, self._recipe, key)
        self._compute(examples, views, key, resolution)
        features = self._features[resolution]
        device = features.device
        places, labels = (
            torch.from_numpy(each).to(device) for each in (views, self.labels[examples])
        )
        for start in range(0, len(examples), batch_size):
            batch = slice(start, start + batch_size)
            yield features[places[batch]], labels[batch]

    def _compute(
        self, examples: np.ndarray, views: np.ndarray, key: int | None, resolution: int
    ) -> None:
        """Compute the features of all views that are not known yet."""
        count = views_per_image(self._recipe) * len(self.labels)
        known = self._known.setdefault(resolution, np.zeros(count, bool))
        new = np.flatnonzero(~known[views])
        known[views[new]] = True
        start = 0
        for images, _ in self._loader.batches(examples[new], self._batch_size, key, resolution):
            features = self._frozen.features(images)
            if resolution not in self._features:
                self._features[resolution] = features.new_empty(count, features.shape[1])
            places = torch.from_numpy(views[new[start : start + len(images)]])
            self._features[resolution][places.to(features.device)] = features
            start += len(images)
