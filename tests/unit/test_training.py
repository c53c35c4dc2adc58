import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tests.conftest import CLASSES, SIDE, recipe_values
from torch import nn

from transfer_influence.config.recipe import Architecture, Recipe, TargetRecipe
from transfer_influence.errors import UserError
from transfer_influence.models.building import (
    build_model,
    freeze_for,
    head_name,
    parameter_groups,
    place,
)
from transfer_influence.outcomes.evaluation import Evaluation
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training.optimization import balanced_weights
from transfer_influence.training.schedule import learning_rates
from transfer_influence.training.trainer import Trainer, augmentation_key, epoch_order

CPU = torch.device("cpu")
SMALL = Architecture(width=4)
SEEDS = TrainingSeeds(weights=1, order=2, augmentation=3)
AUGMENTED = {"crop": "padded", "padding": 2, "flip": True}


def trained(
    data: Path,
    recipe: Recipe,
    seeds: TrainingSeeds = SEEDS,
    mode: str = "full",
    model: nn.Module | None = None,
    examples: np.ndarray | None = None,
    as_for: int | None = None,
) -> nn.Module:
    """A model after training on `examples`, or on all of them."""
    trainer = trainer_of(data, recipe)
    if model is None:
        model = trainer.build(SMALL, seeds.weights)
        freeze_for(model, mode)
    if examples is None:
        examples = np.arange(len(trainer.train_loader.labels))
    trainer.fit(model, examples, seeds, "source model 3", as_for=as_for)
    return model


def trainer_of(data: Path, recipe: Recipe) -> Trainer:
    return Trainer(data, recipe, CPU, workers=1)


def same(one: nn.Module, two: nn.Module) -> bool:
    states = one.state_dict(), two.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Linear(nn.Module):
    """Softmax regression on pixels, in the place of a network."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE**2, CLASSES, dtype=dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1).to(self.head.weight.dtype))


def softmax_regression(
    pixels: np.ndarray, labels: np.ndarray, examples: np.ndarray, recipe: Recipe, rates: list
) -> tuple[np.ndarray, np.ndarray]:
    """SGD as in the PyTorch manual, in float64 and by hand: (weight, bias)."""
    smoothing = recipe.label_smoothing
    mean, std = pixels.mean(axis=(0, 1, 2)), pixels.std(axis=(0, 1, 2))
    x = ((pixels - mean) / std).transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    x = np.hstack([x, np.ones((len(x), 1))])
    wanted = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
    theta, velocity = np.zeros((CLASSES, x.shape[1])), np.zeros((CLASSES, x.shape[1]))
    size = min(recipe.batch_size, len(examples))
    step = 0
    for epoch in range(recipe.epochs):
        order = epoch_order(examples, SEEDS.order, epoch)
        for first in range(0, len(order) - size + 1, size):
            batch = order[first : first + size]
            logits = x[batch] @ theta.T
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
            gradient = (shares - wanted[batch]).T @ x[batch] / size + recipe.weight_decay * theta
            velocity = recipe.momentum * velocity + gradient
            theta = theta - rates[step] * velocity
            step += 1
    assert step == len(rates)
    return theta[:, :-1], theta[:, -1]


@pytest.mark.parametrize(
    ("changes", "count", "rates"),
    [
        ({}, 40, [0, 0.001, 0.002, 0.001]),
        ({"schedule": {"kind": "step", "every": 1, "factor": 0.1}}, 40, [2e-3] * 2 + [2e-4] * 2),
        ({"momentum": 0.0}, 40, [0, 0.001, 0.002, 0.001]),
        ({"weight_decay": 0.0}, 40, [0, 0.001, 0.002, 0.001]),
        ({"label_smoothing": 0.0}, 40, [0, 0.001, 0.002, 0.001]),
        ({}, 31, [0, 0.002]),
        ({}, 5, [0, 0.002]),
        ({}, 2, [0, 0.002]),
    ],
    ids=[
        *("all", "step", "momentum", "decay", "smoothing"),
        *("incomplete batch", "less than a batch", "two images"),
    ],
)
def test_training_is_sgd_computed_by_hand(planted, changes, count, rates):
    values = {"learning_rate": 0.002, "momentum": 0.9, "weight_decay": 20.0, "label_smoothing": 0.2}
    recipe = Recipe(**recipe_values(**{**values, **changes}))
    examples = np.random.default_rng(0).permutation(120)[:count]
    model = trained(planted, recipe, model=Linear(torch.float64), examples=examples)
    with np.load(planted.parent / "images.npz") as arrays:
        pixels, labels = arrays["train_images"] / 255, arrays["train_labels"]
    weight, bias = softmax_regression(pixels, labels, examples, recipe, rates)
    assert np.abs(weight).max() > 1e-4
    np.testing.assert_allclose(model.head.weight.detach().numpy(), weight, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(model.head.bias.detach().numpy(), bias, rtol=1e-4, atol=1e-7)


def test_a_network_takes_the_steps_of_torchs_sgd(planted):
    recipe = Recipe(
        **recipe_values(
            epochs=1, weight_decay=0.1, schedule={"kind": "multi_step", "epochs": [], "factor": 0.5}
        )
    )
    examples = np.arange(32)
    model = trained(planted, recipe, examples=examples)

    expected = place(build_model(SMALL, CLASSES, SEEDS.weights), CPU)
    optimizer = torch.optim.SGD(expected.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    trainer, order = trainer_of(planted, recipe), epoch_order(examples, SEEDS.order, 0)
    for images, labels in trainer.train_loader.batches(order, 16, 0, SIDE):
        optimizer.zero_grad()
        nn.CrossEntropyLoss()(expected(trainer.normalize(images)), labels).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], msg=name)


def test_training_learns_what_is_planted(planted):
    recipe = Recipe(**recipe_values(epochs=12))
    model = trained(planted, recipe)
    found = trainer_of(planted, recipe).evaluate(model)
    assert found.accuracy > 0.95
    assert found.loss < 0.5


def test_training_on_some_classes_never_shows_the_others(planted):
    recipe = Recipe(**recipe_values(epochs=4))
    labels = np.load(planted / "train.labels.npy")
    model = trained(planted, recipe, examples=np.flatnonzero(labels < 3))
    found = trainer_of(planted, recipe).evaluate(model)
    assert found.class_accuracy[:3].mean() > 0.9
    assert found.class_accuracy[3:].tolist() == [0, 0, 0]


def test_the_same_seeds_give_the_same_weights_bit_for_bit(planted):
    recipe = Recipe(**recipe_values(augmentation=AUGMENTED))
    assert same(trained(planted, recipe), trained(planted, recipe))


@pytest.mark.parametrize("changed", ["weights", "order", "augmentation"])
def test_each_seed_changes_the_weights(planted, changed):
    recipe = Recipe(**recipe_values(augmentation=AUGMENTED))
    other = TrainingSeeds(**{**vars(SEEDS), changed: 99})
    assert not same(trained(planted, recipe), trained(planted, recipe, other))


def test_the_global_random_state_does_not_matter(planted):
    recipe = Recipe(**recipe_values(augmentation=AUGMENTED))
    first = trained(planted, recipe)
    torch.rand(7)
    np.random.default_rng().random(3)
    assert same(first, trained(planted, recipe))


def test_without_augmentation_its_seed_changes_nothing(planted):
    recipe = Recipe(**recipe_values())
    other = TrainingSeeds(**{**vars(SEEDS), "augmentation": 99})
    assert same(trained(planted, recipe), trained(planted, recipe, other))


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
@pytest.mark.parametrize("mode", ["fixed", "full"])
def test_each_mode_changes_what_it_should_and_nothing_else(planted, mode, batchnorm):
    recipe = TargetRecipe(**recipe_values(batchnorm=batchnorm))
    before = place(build_model(SMALL, CLASSES, SEEDS.weights), CPU).state_dict()
    model = trained(planted, recipe, mode=mode)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    buffers = {name for name, _ in model.named_buffers()}
    head = {name for name in before if name.startswith(head_name(model))}
    weights = head if mode == "fixed" else before.keys() - buffers
    assert changed == weights | (buffers if batchnorm == "train" else set())


def test_a_source_model_always_adapts_its_batchnorm(planted):
    model = trained(planted, Recipe(**recipe_values()))
    assert model.stages[0].norm1.num_batches_tracked == 2 * (120 // 16)


def test_a_loss_that_is_not_finite_names_model_and_remedy(planted):
    recipe = Recipe(
        **recipe_values(learning_rate=1e30, schedule={"kind": "cyclic", "peak_epoch": 0})
    )
    with pytest.raises(UserError) as mistake:
        trained(planted, recipe)
    assert str(mistake.value).startswith("source model 3 (seeds ")
    assert str(mistake.value).endswith(
        "): the loss is nan after epoch 1; lower the recipe's learning_rate (1e+30)."
    )


@pytest.mark.parametrize("count", [0, 1])
def test_less_than_two_images_are_refused(planted, count):
    with pytest.raises(UserError, match=f"^source model 3: {count} training images; give it at"):
        trained(planted, Recipe(**recipe_values()), examples=np.arange(count))


def test_each_epoch_is_logged_with_its_last_learning_rate(planted, caplog):
    with caplog.at_level(logging.INFO):
        trained(planted, Recipe(**recipe_values()), examples=np.arange(32))
    lines = [record.getMessage() for record in caplog.records if "epoch" in record.getMessage()]
    assert [line.split(", loss")[0] for line in lines] == [
        "source model 3: epoch 1/2",
        "source model 3: epoch 2/2",
    ]
    assert all("learning rate 0.05," in line for line in lines)


def test_normalised_training_images_have_mean_0_and_standard_deviation_1(planted):
    trainer = trainer_of(planted, Recipe(**recipe_values()))
    images, _ = next(iter(trainer.train_loader.batches(np.arange(120), 120, None, SIDE)))
    normalised = trainer.normalize(images)
    assert normalised.dtype == torch.float32
    torch.testing.assert_close(normalised.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)


def test_epoch_orders_never_change_as_they_are_part_of_every_result():
    assert epoch_order(np.arange(8), 5, 0).tolist() == [1, 4, 2, 3, 7, 5, 6, 0]
    assert epoch_order(np.arange(8), 5, 1).tolist() == [4, 2, 5, 0, 7, 6, 3, 1]
    assert augmentation_key(5, 1) == 7140773188076526696


def test_every_epoch_has_an_order_and_an_augmentation_of_its_own():
    examples = np.arange(100, 150)
    orders = [epoch_order(examples, seed, epoch) for seed in range(4) for epoch in range(4)]
    assert all(sorted(order.tolist()) == examples.tolist() for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 16
    keys = {augmentation_key(seed, epoch) for seed in range(30) for epoch in range(30)}
    assert len(keys) == 900
    assert all(0 <= key < 2**63 for key in keys)


def test_a_recipe_whose_rate_never_leaves_zero_is_refused(planted):
    recipe = Recipe(**recipe_values(epochs=1, batch_size=10_000))
    with pytest.raises(
        UserError, match=r"^source model 3: 1 step\(s\) in all, at learning rate 0;"
    ):
        trained(planted, recipe)


# Weight decay


def step_without_gradient(model: nn.Module, recipe: Recipe, rate: float) -> None:
    """One step of SGD in which only the weight decay acts."""
    optimizer = torch.optim.SGD(parameter_groups(model, recipe), lr=rate)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


class Norms(nn.Module):
    """A layer of each kind that has no weight decay of its own, and of each that may have."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, True)]
        )


@pytest.mark.parametrize("decay_norm", [None, 0.0, 0.5])
def test_normalisation_layers_may_have_a_weight_decay_of_their_own(decay_norm):
    recipe = Recipe(**recipe_values(weight_decay=0.2, weight_decay_norm=decay_norm))
    model = Norms()
    nn.init.constant_(model.norms[1].bias, 0.7)
    before = {name: value.clone() for name, value in model.named_parameters()}
    step_without_gradient(model, recipe, rate=0.1)
    for name, value in model.named_parameters():
        decay = decay_norm if decay_norm is not None and name.startswith("norms.") else 0.2
        torch.testing.assert_close(value, before[name] * (1 - 0.1 * decay), msg=name)


@pytest.mark.parametrize(("decay_norm", "norms"), [(None, 0.2), (0.0, 0.0)])
def test_groups_hold_every_trained_parameter_once(decay_norm, norms):
    recipe = Recipe(**recipe_values(weight_decay=0.2, weight_decay_norm=decay_norm))
    model = build_model(Architecture(name="resnet18"), CLASSES, 0)
    groups = parameter_groups(model, recipe)
    assert [group["weight_decay"] for group in groups] == [0.2, norms]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert len(groups[1]["params"]) == 2 * 20  # of resnet18's 20 BatchNorms, scale and shift
    freeze_for(model, "fixed")
    assert [len(group["params"]) for group in parameter_groups(model, recipe)] == [2]


def test_the_loop_uses_the_weight_decay_of_normalisation_layers(planted):
    changed = {
        decay: trained(planted, Recipe(**recipe_values(weight_decay_norm=decay)))
        for decay in (None, 5e-4, 0.0, 5.0)
    }
    assert same(changed[None], changed[5e-4])
    assert not same(changed[None], changed[0.0])
    scales = {decay: model.stages[0].norm1.weight.abs().mean() for decay, model in changed.items()}
    assert scales[5.0] < 0.8 * scales[0.0]


# Class weights


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 1], [0, 1, 2, 2, 2, 2], [1, 1, 1, 4], [0, 0, 0]],
    ids=["two", "three", "absent", "one"],
)
def test_balanced_weights_are_those_of_scikit_learn(labels):
    present = np.unique(labels)
    found = balanced_weights(np.array(labels), 5).numpy()
    expected = compute_class_weight("balanced", classes=present, y=labels)
    np.testing.assert_allclose(found[present], expected, rtol=1e-6)
    assert (np.delete(found, present) == 0).all()


def test_a_weighted_loss_is_the_same_for_every_class_as_if_all_were_equally_common():
    # Class 1 is three times as common; what the network thinks depends on the class alone.
    labels = np.array([0, 1, 1, 1])
    logits = torch.tensor([[2.0, 1.0], [0.5, 1.0]])[labels]
    weighted = nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), balanced_weights(labels, 2)
    )
    of_each = nn.functional.cross_entropy(logits[:2], torch.from_numpy(labels[:2]))
    torch.testing.assert_close(weighted, of_each)


def test_training_with_balanced_classes_is_sgd_on_the_weighted_loss(planted):
    schedule = {"kind": "multi_step", "epochs": [], "factor": 0.5}
    recipe = Recipe(
        **recipe_values(epochs=1, class_weights="balanced", schedule=schedule, label_smoothing=0.1)
    )
    labels = np.load(planted / "train.labels.npy")
    examples = np.concatenate([np.flatnonzero(labels == 0)[:12], np.flatnonzero(labels == 2)[:4]])
    model = trained(planted, recipe, model=Linear(torch.float32), examples=examples)

    expected = Linear(torch.float32)
    weights = torch.tensor([16 / 24, 0, 16 / 8, 0, 0, 0])
    trainer = trainer_of(planted, recipe)
    order = epoch_order(examples, SEEDS.order, 0)
    ((images, wanted),) = trainer.train_loader.batches(order, 16, 0, SIDE)
    logits = expected(trainer.normalize(images))
    nn.CrossEntropyLoss(weights, label_smoothing=0.1)(logits, wanted).backward()
    for name, value in expected.named_parameters():
        step = value - 0.1 * (value.grad + recipe.weight_decay * value)
        torch.testing.assert_close(model.get_parameter(name), step)


# Watching, and what is kept


def watched(
    data: Path, accuracies: list[float], validated: Sequence[float] = (), **changes: Any
) -> tuple[nn.Module, list[dict[str, torch.Tensor]], list[tuple[int, dict[str, float]]]]:
    """A model trained for five epochs that is told these accuracies; its weights each time.

    On held-out training images it is told those of `validated`.
    """
    recipe = TargetRecipe(**recipe_values(**{"epochs": 5, **changes}))
    trainer = trainer_of(data, recipe)
    model = trainer.build(SMALL, SEEDS.weights)
    states: list[dict[str, torch.Tensor]] = []
    seen: list[tuple[int, dict[str, float]]] = []
    told = iter(accuracies)

    def test() -> Evaluation:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return replace(evaluate(model), accuracy=next(told), loss=1.0)

    def on_held_out(model: nn.Module, examples: np.ndarray, split: str) -> Evaluation:
        assert split == "train"
        return replace(evaluate(model, examples, split), accuracy=next(told_validated))

    evaluate, told_validated = trainer.evaluate, iter(validated)
    trainer.evaluate = on_held_out  # type: ignore[method-assign, assignment]

    trainer.fit(
        model,
        np.arange(48),
        SEEDS,
        "model",
        test=test,
        watch=lambda epoch, known: seen.append((epoch, known)),
    )
    assert next(told, None) is None, "evaluated too rarely"
    return model, states, seen


@pytest.mark.parametrize(
    ("keep", "accuracies", "kept"),
    [
        ("last", [0.1, 0.9, 0.2], 2),
        ("best", [0.1, 0.9, 0.2], 1),
        ("best", [0.9, 0.1, 0.9], 0),
        ("best", [0.1, 0.2, 0.3], 2),
        ("best", [0.0, 0.0, 0.0], 0),
    ],
)
def test_a_model_ends_with_its_last_or_its_best_weights(planted, keep, accuracies, kept):
    other = [0.5, 0.4, 0.3]  # on the test images, which have no say
    model, states, _ = watched(planted, other, accuracies, keep=keep, evaluate_every=2)
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])
    found = [
        all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        for state in states
    ]
    assert found == [number == kept for number in range(3)]


@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_evaluations_on_the_way_change_no_weight(planted, batchnorm):
    never, states, _ = watched(planted, [], batchnorm=batchnorm)
    assert states == []
    often, states, _ = watched(planted, [0.5] * 5, evaluate_every=1, batchnorm=batchnorm)
    assert len(states) == 5
    assert same(never, often)


def test_what_is_known_of_each_epoch_is_told(planted, caplog):
    ramp = {"start": 8, "end": 16, "start_epoch": 0, "end_epoch": 4, "multiple": 4}
    with caplog.at_level(logging.INFO):
        _, _, seen = watched(planted, [0.25, 0.5, 0.75], evaluate_every=2, resolution=ramp)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5]
    assert [known["resolution"] for _, known in seen] == [8, 8, 12, 16, 16]
    accuracies = [known.get("test/accuracy") for _, known in seen]
    assert accuracies == [None, 0.25, None, 0.5, 0.75]
    # Three steps an epoch: the rate of the last one.
    rates = [known["learning_rate"] for _, known in seen]
    assert rates == pytest.approx([0.1 * 2 / 3, *(0.1 * (15 - t) / 12 for t in (5, 8, 11, 14))])
    assert seen[-1][1]["train/loss"] < seen[0][1]["train/loss"]
    lines = [record.getMessage() for record in caplog.records]
    assert "model: epoch 4/5, test accuracy 0.5000, loss 1.0000" in lines


def test_the_best_epoch_is_chosen_by_images_that_the_model_is_not_trained_on(planted, monkeypatch):
    recipe = TargetRecipe(**recipe_values(epochs=2, keep="best", evaluate_every=1))
    trainer, epoch, evaluate = trainer_of(planted, recipe), Trainer._epoch, Trainer.evaluate
    seen, judged = set[int](), list[int]()

    def watched_epoch(self, loader, network, optimization, examples, *others):
        seen.update(examples.tolist())
        return epoch(self, loader, network, optimization, examples, *others)

    def watched_evaluate(self, model, examples, split):
        judged.extend(examples.tolist())
        return evaluate(self, model, examples, split)

    monkeypatch.setattr(Trainer, "_epoch", watched_epoch)
    monkeypatch.setattr(Trainer, "evaluate", watched_evaluate)
    examples = np.arange(0, len(trainer.train_loader.labels), 2)
    trainer.fit(trainer.build(SMALL, 0), examples, SEEDS, "model")
    labels = trainer.train_loader.labels
    held_out = set(judged)
    assert len(judged) == 2 * len(held_out)
    assert seen | held_out == set(examples.tolist())
    assert not seen & held_out
    counts = np.bincount(labels[examples])
    expected = np.where(counts > 1, np.maximum(1, np.floor(0.1 * counts + 0.5)), 0)
    assert np.bincount(labels[list(held_out)], minlength=len(counts)).tolist() == expected.tolist()


def test_the_best_epoch_of_single_images_is_refused(planted):
    recipe = TargetRecipe(**recipe_values(keep="best", evaluate_every=1))
    trainer = trainer_of(planted, recipe)
    _, firsts = np.unique(trainer.train_loader.labels, return_index=True)
    with pytest.raises(UserError, match=r"^model: no class has two .*; set the recipe's keep to l"):
        trainer.fit(trainer.build(SMALL, 0), firsts, SEEDS, "model")


def test_best_needs_evaluations_to_choose_from():
    with pytest.raises(ValueError, match="keep: best needs evaluations to choose from; give"):
        Recipe(**recipe_values(keep="best"))


# Resolution


def test_each_epoch_trains_at_its_resolution(planted):
    ramp = {"start": 8, "end": 16, "start_epoch": 0, "end_epoch": 2, "multiple": 4}
    recipe = Recipe(**recipe_values(epochs=4, resolution=ramp))
    model = place(build_model(SMALL, CLASSES, SEEDS.weights), CPU)
    sides: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    trained(planted, recipe, model=model, examples=np.arange(32))
    assert sides == [8, 8, 12, 12, 16, 16, 16, 16]


# Precision


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_cpu_computes_in_float32_whatever_the_recipe_says(planted, precision):
    mixed = trained(planted, Recipe(**recipe_values(precision=precision)))
    assert same(mixed, trained(planted, Recipe(**recipe_values(precision="float32"))))


# As many steps as with more images


class Watched(nn.Module):
    """Counts the batches that it is given, and their sides."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.sides: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sides.append(images.shape[-1])
        return self.model(images)


def steps_of(data: Path, recipe: Recipe, examples: int, as_for: int | None) -> tuple[Any, ...]:
    """The sides of all batches, and the learning rate at the end of each epoch."""
    trainer = trainer_of(data, recipe)
    model = Watched(trainer.build(SMALL, 1))
    rates: list[float] = []
    trainer.fit(
        model,
        np.arange(examples),
        SEEDS,
        "model",
        as_for=as_for,
        watch=lambda _, known: rates.append(known["learning_rate"]),
    )
    return model.sides, rates


def test_fewer_images_take_as_many_steps_at_the_same_rates_and_resolutions(planted):
    ramp = {"start": 8, "end": 16, "start_epoch": 1, "end_epoch": 3, "multiple": 4}
    recipe = Recipe(**recipe_values(epochs=4, batch_size=8, resolution=ramp))
    whole, _ = steps_of(planted, recipe, 96, None)
    assert whole == [8] * 24 + [12] * 12 + [16] * 12
    # 40 images are 5 steps an epoch: nine epochs, and three steps of a tenth.
    fewer, rates = steps_of(planted, recipe, 40, 96)
    assert len(fewer) == 48
    assert len(rates) == 10
    schedule = learning_rates(recipe, 12)
    ends = [4, 9, 14, 19, 24, 29, 34, 39, 44, 47]
    np.testing.assert_allclose(rates, schedule[ends])
    # An epoch has one side: that of the whole's epoch in which it begins.
    assert fewer == [8] * 25 + [12] * 15 + [16] * 8


def test_as_many_images_take_the_steps_they_take_anyhow(planted):
    recipe = Recipe(**recipe_values(epochs=3))
    assert same(
        trained(planted, recipe),
        trained(planted, recipe, as_for=120),
    )


def test_without_budget_fewer_images_take_fewer_steps(planted):
    sides, _ = steps_of(planted, Recipe(**recipe_values(epochs=4, batch_size=8)), 40, None)
    assert len(sides) == 20
