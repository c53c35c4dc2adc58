#!/usr/bin/env python
"""Compare estimators on simulated studies of known effects.

    python benchmarks/estimators.py models
    python benchmarks/estimators.py coverage
    python benchmarks/estimators.py discoveries

Each study has 20 source classes, subsets of half of them, and an outcome that is a sum of effects
(standard normal), interactions of pairs of classes, and noise.

`models` prints how many models each estimator takes for the same reliability: the squared
correlation of estimated and true influences, which is what the correlation of two such studies
estimates. The number of models for 0.9 is interpolated.

`coverage` prints the share of the 95 % intervals that hold the true influence, ± its standard error
over studies, as the intervals of one study share its models. Bootstraps draw 400 times, those of
`ridge` in a quarter of the studies.

`discoveries` prints the share of studies without effects that find one, ± its standard error.

docs/estimators.md has what they printed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.influence.estimation import certainty, make_estimator
from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.intervals import FALSE_DISCOVERIES, Certainty
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
# Rows of the table of coverage: models, size of the effects, whether models are complement pairs.
COVERED = [
    (14, "strong", False),
    (32, "strong", False),
    (32, "weak", False),
    (64, "strong", False),
    (64, "weak", False),
    (200, "strong", False),
    (200, "weak", False),
    (32, "strong", True),
    (32, "weak", True),
    (64, "strong", True),
    (64, "weak", True),
    (200, "strong", True),
]
# Rows of the table of discoveries: models, classes in a subset, how outcomes are distributed.
EMPTY = [
    (64, 10, "normal"),
    (200, 10, "normal"),
    (64, 10, "exponential"),
    (64, 2, "normal"),
    (64, 2, "exponential"),
    (200, 2, "exponential"),
]
SIZE_OF_EFFECTS = {"strong": 1.0, "weak": 0.2}


def draw_masks(
    models: int, pairs: bool, rng: np.random.Generator, size: int = CLASSES // 2
) -> np.ndarray:
    """Return bool (models, CLASSES): `size` classes each, uniformly or in complement pairs."""
    masks = rng.random((models, CLASSES)).argsort(axis=1) < size
    if pairs:
        masks[1::2] = ~masks[::2]
    return masks


def measured(masks: np.ndarray, outcome: np.ndarray, pairs: bool) -> Measurements:
    """Return the measurements of one outcome (models,)."""
    models = np.arange(len(masks))
    return Measurements(
        models=models,
        groups=models // (2 if pairs else 1),
        masks=Masks(np.packbits(masks, axis=1, bitorder="little"), CLASSES),
        targets=outcome[:, None],
        examples=Outcomes.of(outcome[:, None]),
    )


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
        data = measured(masks, outcome, pairs)
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


def coverage(
    estimator: str, intervals: str, models: int, size: str, pairs: bool, studies: int
) -> tuple[float, float]:
    """Return the share of intervals that hold the true influence, and its standard error."""
    shares = []
    for study in range(studies):
        rng = np.random.default_rng([1, study, models])
        effects = rng.normal(0, SIZE_OF_EFFECTS[size], CLASSES)
        masks = draw_masks(models, pairs, rng)
        counts = masks.sum(axis=0)
        if min(counts.min(), models - counts.max()) < 2:
            continue  # of a study with such a class, no influences are estimated
        data = measured(masks, masks @ effects + rng.normal(size=models), pairs)
        known = certainty_of(estimator, intervals, data, study)
        truth = effects - effects.mean()
        if estimator == "difference_in_means":  # a class comes in for one of the others
            truth *= CLASSES / (CLASSES - 1)
        shares.append(((known.low <= truth) & (truth <= known.high)).mean())
    return float(np.mean(shares)), float(np.std(shares, ddof=1) / np.sqrt(len(shares)))


def false_discoveries(
    estimator: str, models: int, size: int, shape: str, studies: int
) -> tuple[float, float]:
    """Return the share of studies without effects that find one, and its standard error."""
    found = []
    for study in range(studies):
        rng = np.random.default_rng([2, study, models])
        masks = draw_masks(models, False, rng, size)
        if masks.sum(axis=0).min() < 2:
            continue  # of a study with such a class, no influences are estimated
        outcome = rng.normal(size=models) if shape == "normal" else rng.exponential(size=models)
        known = certainty_of(estimator, "closed_form", measured(masks, outcome, False), study)
        found.append((known.q_value <= FALSE_DISCOVERIES).any())
    share = float(np.mean(found))
    return share, float(np.sqrt(share * (1 - share) / len(found)))


def certainty_of(estimator: str, intervals: str, data: Measurements, seed: int) -> Certainty:
    """Return how sure the influences are that the study `data` gives."""
    stage = InfluenceStage(
        seed=seed,
        unit="class",
        estimator=estimator,
        outcome="raw_margin",
        intervals=intervals,
        bootstrap_replicates=400,
        held_out=0.2,
        largest_table_gb=0,
    )
    made = make_estimator(stage, data, 1e9)
    return certainty(stage, data, joined(made.fit(Outcomes.of(data.whole))), made)


def main() -> None:
    """Print one of the tables."""
    arguments = parser().parse_args()
    if arguments.table == "coverage":
        print_coverage(arguments.studies or 400)
    elif arguments.table == "discoveries":
        print_discoveries(arguments.studies or 5000)
    else:
        print_models(arguments.studies or 40)


def print_coverage(studies: int) -> None:
    """Print a row for each kind of study."""
    for models, size, pairs in COVERED:
        row = f"| {models}, {size}{', complement pairs' if pairs else ''} |"
        for estimator in ("difference_in_means", "ridge"):
            for intervals in ("closed_form", "bootstrap"):
                slow = (estimator, intervals) == ("ridge", "bootstrap")
                count = studies // (4 if slow else 1)
                share, error = coverage(estimator, intervals, models, size, pairs, count)
                row += f" {100 * share:.1f} ± {100 * error:.1f} % |"
        print(row, flush=True)


def print_discoveries(studies: int) -> None:
    """Print a row for each kind of study without effects."""
    for models, size, shape in EMPTY:
        row = f"| {models}, subsets of {size}, {shape} |"
        for estimator in ("difference_in_means", "ridge"):
            share, error = false_discoveries(estimator, models, size, shape, studies)
            row += f" {100 * share:.1f} ± {100 * error:.1f} % |"
        print(row, flush=True)


def print_models(studies: int) -> None:
    """Print a table for each world."""
    for world in WORLDS:
        print(f"\n{world}: reliability at {SIZES} models; models for 0.9")
        for estimator in ESTIMATORS:
            for pairs in (False, True):
                count = studies // (2 if estimator == "lasso" else 1)
                curve = [reliability(estimator, size, pairs, world, count) for size in SIZES]
                needed = models_for(0.9, curve)
                name = f"{estimator}, {'complement pairs' if pairs else 'uniform'}"
                shown = " ".join(f"{value:.2f}" for value in curve)
                print(f"{name:38} {shown}  {needed:5.0f}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "table", choices=["models", "coverage", "discoveries"], help="what to print"
    )
    parser.add_argument(
        "--studies",
        type=int,
        help="simulated studies a point (default: 40; for coverage 400, for discoveries 5,000)",
    )
    return parser


if __name__ == "__main__":
    main()
