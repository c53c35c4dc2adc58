"""Masks and outcomes of pretended models, whose true effects are known."""

import numpy as np

from transfer_influence.config.study import Subset
from transfer_influence.influence.measurements import Masks, Measurements, Outcomes, recognized
from transfer_influence.subsets import draw_mask

ROOM = 1e9  # bytes for matrices


def random_masks(models: int, classes: int, seed: int = 0) -> np.ndarray:
    """Half of the classes each."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(classes) < classes // 2 for _ in range(models)])


def complement_pairs(models: int, classes: int, seed: int = 0) -> np.ndarray:
    """Models 2i and 2i+1 have one half of the classes each."""
    first = random_masks(models // 2, classes, seed)
    return np.stack([first, ~first], axis=1).reshape(models, classes)


def balanced_masks(models: int, classes: int, seed: int = 0) -> np.ndarray:
    """Blocks in which any two classes are together equally often."""
    subset = Subset(sampling="balanced")
    return np.array([draw_mask(seed, model, classes, subset) for model in range(models)])


MASKS = {
    "uniform": random_masks,
    "complement_pairs": complement_pairs,
    "balanced": balanced_masks,
}


def names(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]


def measured(masks: np.ndarray, outcomes: np.ndarray) -> Measurements:
    """Measurements of outcomes (models, examples); the whole target is their mean."""
    models = np.arange(len(masks))
    measurements = Measurements(
        models=models,
        groups=models,
        masks=Masks(np.packbits(masks, axis=1, bitorder="little"), masks.shape[1]),
        targets=outcomes.mean(axis=1, keepdims=True),
        accuracy=np.empty((len(masks), 0)),
        examples=Outcomes.of(outcomes),
    )
    return recognized(measurements)


def planted(
    models: int = 300, classes: int = 8, columns: int = 5, noise: float = 0.5, seed: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return masks, outcomes that are sums of effects and noise, and the effects."""
    rng = np.random.default_rng(seed)
    masks = random_masks(models, classes, seed)
    effects = rng.normal(size=(classes, columns))
    return masks, masks @ effects + rng.normal(0, noise, (models, columns)), effects
