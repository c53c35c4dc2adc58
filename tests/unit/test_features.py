"""Training on features that are kept is the training on images, only faster."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import SIDE, recipe_values
from torch import nn

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.models.building import freeze_for
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training import features, trainer
from transfer_influence.training.trainer import Trainer
from transfer_influence.vision import torchvision

StochasticDepth = torchvision.ops.StochasticDepth

CPU = torch.device("cpu")
SEEDS = TrainingSeeds(weights=1, order=2, augmentation=3)
RAMP = {"start": 8, "end": 16, "start_epoch": 1, "end_epoch": 3, "multiple": 8}


class Watched(nn.Module):
    """A network that counts the images that it is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.images = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.images += len(images)
        return self.model(images)


def recipe(**changes: Any) -> TargetRecipe:
    return TargetRecipe(**recipe_values(**{"epochs": 6, "batchnorm": "frozen", **changes}))


def trained(
    data: Path, how: Recipe, mode: str = "fixed", model: nn.Module | None = None
) -> Watched:
    made = Trainer(data, how, CPU, workers=1)
    if model is None:
        torch.manual_seed(0)
        model = made.build(Architecture(width=4), seed=1)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):  # as if it had seen images
                nn.init.uniform_(norm.running_mean, -0.5, 0.5)
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
    watched = Watched(model)
    freeze_for(watched, mode)
    made.fit(watched, np.arange(0, 120, 2), SEEDS, "model")
    return watched


CHANGES = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"augmentation": {"flip": True}},
        {"augmentation": {"flip": True}, "resolution": RAMP},
        {"augmentation": {"flip": True}, "upsample_to": 40},
        {"test_crop": 0.75, "label_smoothing": 0.1, "class_weights": "balanced"},
    ],
    ids=["still", "mirrored", "ramp", "upsampled", "cropped"],
)


@CHANGES
def test_kept_features_give_the_same_weights_within_rounding(planted, monkeypatch, changes):
    fast = trained(planted, recipe(**changes))
    monkeypatch.setattr(trainer, "keeps_features", lambda *_: False)
    slow = trained(planted, recipe(**changes))
    assert slow.images == 6 * 48  # three whole batches of 16 in each epoch
    assert fast.images < 0.7 * slow.images
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(fast.model.head.weight, nn.Linear(16, 6).weight)


@pytest.mark.parametrize(("flip", "views"), [(False, 1), (True, 2)])
def test_each_view_is_computed_once(planted, flip, views):
    found = trained(planted, recipe(epochs=20, augmentation={"flip": flip}))
    # 60 images; besides, a few are looked at three times to see that this can be done.
    assert found.images == views * 60 + 3 * features.PROBED


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({"batchnorm": "train"}, "fixed"),
        ({}, "full"),
        ({"augmentation": {"crop": "random_resized"}}, "fixed"),
        ({"augmentation": {"crop": "padded", "padding": 1}}, "fixed"),
    ],
    ids=["statistics", "full", "cropped", "shifted"],
)
def test_features_that_change_are_not_kept(planted, changes, mode):
    assert trained(planted, recipe(**changes), mode).images == 6 * 48


def test_features_that_do_not_fit_are_not_kept(planted, monkeypatch):
    monkeypatch.setitem(features.MOST_BYTES, "cpu", 4 * 16 * 120)
    assert trained(planted, recipe()).images < 6 * 48
    monkeypatch.setitem(features.MOST_BYTES, "cpu", 4 * 16 * 120 - 1)
    assert trained(planted, recipe()).images == 6 * 48


class FunctionalDropout(nn.Module):
    """Drops units without a layer for it, as attention does."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(features, 0.5, self.training)


def linear(*layers: nn.Module, after: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    last = [] if after is None else [after]
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, 8), *layers, nn.Linear(8, 6), *last)


# Of a look at a few images: how often the network sees each.
@pytest.mark.parametrize(
    ("model", "kept", "looks"),
    [
        (linear(nn.ReLU()), True, 3),
        (linear(nn.BatchNorm1d(8)), True, 3),
        (linear(nn.LayerNorm(8)), True, 3),
        (linear(nn.Dropout(0.0)), True, 3),
        (linear(nn.Dropout(0.5)), False, 0),
        (linear(StochasticDepth(0.01, "row")), False, 0),
        (linear(FunctionalDropout()), False, 2),
        (linear(after=nn.Softmax(dim=1)), False, 3),
    ],
    ids=[
        *("relu", "batchnorm", "layernorm", "no dropout", "dropout", "stochastic depth"),
        *("dropout without a layer", "something after the head"),
    ],
)
def test_only_features_of_a_function_are_kept(planted, model, kept, looks):
    found = trained(planted, recipe(), model=model).images
    assert found == (60 if kept else 6 * 48) + looks * features.PROBED


def test_a_look_at_features_draws_no_random_numbers(planted, monkeypatch):
    def weights(looked: bool) -> torch.Tensor:
        model = linear(FunctionalDropout())
        if not looked:
            monkeypatch.setattr(trainer, "keeps_features", lambda *_: False)
        return trained(planted, recipe(), model=model).model[-1].weight

    assert torch.equal(weights(looked=True), weights(looked=False))
