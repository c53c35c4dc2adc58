#!/usr/bin/env python
"""Compare estimators on simulated studies of known effects: models for the same reliability.

    python benchmarks/estimators.py

Each study has 20 source classes, subsets of half of them, and an outcome that is a sum of effects
(standard normal), interactions of pairs of classes, and noise. Reliability is the squared
correlation of estimated and true influences, which is what the correlation of two such studies
estimates. The number of models for 0.9 is interpolated. docs/estimators.md has what it printed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.lasso import Lasso
from transfer_influence.influence.measurements import (
    Masks,
    Measurements,
    Outcomes,
)
from transfer_influence.influence.ridge import Ridge

CLASSES = 20
SIZES = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768]
ESTIMATORS = {
    "difference_in_means": lambda data: DifferenceInMeans(data, 1e9),
    "ridge": lambda data: Ridge(data, 1e9),
    "lasso": lambda data: Lasso(data, 1e9, 0.2, 0),
}
# Standard deviations of the noise of a model and of the effect of a pair of classes.
WORLDS = {
    "little noise": (1.0, 0.0),
    "noise": (4.0, 0.0),
    "much noise": (10.0, 0.0),
    "interactions": (1.0, 0.5),
}


def draw_masks(models: int, pairs: bool, rng: np.random.Generator) -> np.ndarray:
    """Return bool (models, CLASSES): halves, uniformly or in complement pairs."""
    masks = rng.random((models, CLASSES)).argsort(axis=1) < CLASSES // 2
    if pairs:
        masks[1::2] = ~masks[::2]
    return masks


def reliability(estimator: str, models: int, pairs: bool, world: str, studies: int) -> float:
    """Return the mean squared correlation of estimated and true influences."""
    noise, interaction = WORLDS[world]
    found = []
    for study in range(studies):
        rng = np.random.default_rng([study, models])
        effects = rng.normal(size=CLASSES)
        both = np.triu(rng.normal(0, interaction, (CLASSES, CLASSES)), 1)
        masks = draw_masks(models, pairs, rng)
        outcome = masks @ effects + rng.normal(0, noise, models)
        outcome += np.einsum("ij,jk,ik->i", masks, both, masks)
        data = Measurements(
            models=np.arange(models),
            groups=np.arange(models) // (2 if pairs else 1),
            masks=Masks(np.packbits(masks, axis=1, bitorder="little"), CLASSES),
            targets=outcome[:, None],
            examples=Outcomes.of(outcome[:, None]),
        )
        influence = joined(ESTIMATORS[estimator](data).fit(Outcomes.of(data.whole))).influence
        # A class brings half of each pair that it is in, in models that have half of the classes.
        truth = effects + (both + both.T).sum(axis=1) * (CLASSES / 2 - 1) / (CLASSES - 1)
        defined = np.isfinite(influence[:, 0])
        if defined.sum() > 2 and np.ptp(influence[defined, 0]) > 0:
            found.append(np.corrcoef(influence[defined, 0], truth[defined])[0, 1])
        else:
            found.append(0.0)
    return float(np.mean(found)) ** 2


def models_for(goal: float, curve: list[float]) -> float:
    """Return where a curve over SIZES first reaches a goal; NaN where it never does."""
    for place in range(1, len(curve)):
        if curve[place] >= goal:
            low, high = curve[place - 1 : place + 1]
            share = (goal - low) / (high - low) if low < goal else 0.0
            return float(np.exp(np.interp(share, [0, 1], np.log(SIZES[place - 1 : place + 1]))))
    return np.nan


def main() -> None:
    """Print a table for each world."""
    arguments = parser().parse_args()
    for world in WORLDS:
        print(f"\n{world}: reliability at {SIZES} models; models for 0.9")
        for estimator in ESTIMATORS:
            for pairs in (False, True):
                studies = arguments.studies // (2 if estimator == "lasso" else 1)
                curve = [reliability(estimator, size, pairs, world, studies) for size in SIZES]
                needed = models_for(0.9, curve)
                name = f"{estimator}, {'complement pairs' if pairs else 'uniform'}"
                shown = " ".join(f"{value:.2f}" for value in curve)
                print(f"{name:38} {shown}  {needed:5.0f}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--studies", type=int, default=40, help="simulated studies a point")
    return parser


if __name__ == "__main__":
    main()
