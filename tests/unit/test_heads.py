"""Heads that are solved for, against scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from tests.conftest import recipe_values
from torch import nn

from transfer_influence.config.recipe import Architecture, TargetRecipe
from transfer_influence.datasets.held_out import hold_out
from transfer_influence.models.building import freeze_for
from transfer_influence.training.heads import HELD_OUT, solve_head
from transfer_influence.training.optimization import training_loss
from transfer_influence.training.trainer import Trainer

CLASSES, WIDTH = 4, 7


def planted_features(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(CLASSES, count, p=[0.1, 0.2, 0.3, 0.4])
    centres = rng.normal(size=(CLASSES, WIDTH))
    return (centres[labels] + rng.normal(size=(count, WIDTH))).astype(np.float32), labels


def recipe(**changes: Any) -> TargetRecipe:
    head = {"solver": "lbfgs", "l2": 0.01}
    return TargetRecipe(**recipe_values(**{"batchnorm": "frozen", "head": head, **changes}))


def solved(x: np.ndarray, y: np.ndarray, penalties: list[float], **changes: Any):
    head = nn.Linear(WIDTH, CLASSES)
    loss = training_loss(recipe(**changes), y, CLASSES)
    return head, solve_head(head, torch.from_numpy(x), torch.from_numpy(y), loss, penalties)


@pytest.mark.parametrize("penalty", [1e-4, 0.01, 1.0])
@pytest.mark.parametrize("weights", ["none", "balanced"])
def test_a_head_is_that_of_scikit_learn(penalty, weights):
    x, y = planted_features(300)
    head, found = solved(x, y, [penalty], class_weights=weights)
    balanced = "balanced" if weights == "balanced" else None
    expected = LogisticRegression(
        C=1 / (penalty * len(y)), tol=1e-10, max_iter=10_000, class_weight=balanced
    ).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(head.weight.detach(), expected.coef_, atol=2e-5)
    intercept = head.bias.detach().numpy()
    np.testing.assert_allclose(
        intercept - intercept.mean(), expected.intercept_ - expected.intercept_.mean(), atol=2e-4
    )
    assert found.penalty == penalty
    if weights == "none":
        shares = expected.predict_proba(x.astype(np.float64))[np.arange(len(y)), y]
        assert found.loss == pytest.approx(-np.log(shares).mean(), abs=1e-6)


def test_of_several_penalties_the_best_on_held_out_images_is_used_for_all():
    x, y = planted_features(60)
    penalties = [1e-5, 1e-2, 10.0]
    kept, judged = hold_out(y, HELD_OUT, np.random.default_rng(0))
    losses = {}
    for penalty in penalties:
        trial = LogisticRegression(C=1 / (penalty * len(kept)), tol=1e-10, max_iter=10_000)
        shares = trial.fit(x[kept], y[kept]).predict_proba(x[judged])
        losses[penalty] = -np.log(shares[np.arange(len(judged)), y[judged]]).mean()
    head, found = solved(x, y, penalties)
    assert found.penalty == min(losses, key=losses.__getitem__)
    alone, _ = solved(x, y, [found.penalty])
    assert torch.equal(head.weight, alone.weight)


def test_a_solved_head_depends_on_no_seed(planted):
    weights = []
    for seed in (1, 2):
        trainer = Trainer(planted, recipe(), torch.device("cpu"), workers=1)
        model = trainer.build(Architecture(width=4), seed=0)
        freeze_for(model, "fixed")
        torch.manual_seed(seed)
        nn.init.normal_(model.head.weight)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        trainer.solve_head(model, np.arange(120), "model")
        weights.append(model.head.weight)
        changed = {
            key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
        }
        assert changed == {"head.weight", "head.bias"}
        assert trainer.evaluate(model).accuracy > 0.8
    assert torch.equal(*weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batchnorm": "train"}, "set batchnorm: frozen"),
        ({"augmentation": {"flip": True}}, "set augmentation.crop to center"),
        ({"augmentation": {"crop": "padded"}}, "set augmentation.crop to center"),
        ({"head": {"solver": "lbfgs", "l2": []}}, "l2 is an empty list"),
    ],
)
def test_a_solver_needs_features_that_stay(changes, said):
    with pytest.raises(ValidationError, match=said):
        recipe(**changes)
