#!/usr/bin/env python
"""Compare estimators on simulated studies of known effects.

    python benchmarks/estimators.py models
    python benchmarks/estimators.py coverage
    python benchmarks/estimators.py discoveries
    python benchmarks/estimators.py stopping

Each study has 20 source classes, subsets of half of them, and an outcome that is a sum of effects
(standard normal), interactions of pairs of classes, and noise.

`models` prints how many models each estimator takes for the same reliability: the squared
correlation of estimated and true influences, which is what the correlation of two such studies
estimates. The number of models for 0.9 is interpolated.

`coverage` prints the share of the 95 % intervals that hold the true influence, ± its standard error
over studies, as the intervals of one study share its models. Bootstraps draw 400 times, those of
`ridge` in a quarter of the studies.

`discoveries` prints the share of studies without effects that find one, ± its standard error.

`stopping` lets balanced studies grow, block after block, until the lower end of the reliability
passes a mark, and prints how far the reliability that is said then is off.

docs/estimators.md has what they printed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.config.study import Sampling, Subset
from transfer_influence.influence.estimation import certainty, make_estimator
from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.intervals import FALSE_DISCOVERIES, Certainty
from transfer_influence.influence.lasso import Lasso
from transfer_influence.influence.measurements import (
    Masks,
    Measurements,
    Outcomes,
    recognized,
)
from transfer_influence.influence.reliability import estimated_reliability
from transfer_influence.influence.ridge import Ridge
from transfer_influence.subsets import block_models, draw_mask

CLASSES = 20
# Numbers of models of each sampling; balanced subsets come in blocks of 38.
SIZES: dict[Sampling, list[int]] = {
    "uniform": [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768],
    "complement_pairs": [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768],
    "balanced": [38, 76, 114, 152, 190, 266, 380, 532, 760],
}
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
# Rows of the table of coverage: models, size of the effects, sampling.
COVERED: list[tuple[int, str, Sampling]] = [
    (14, "strong", "uniform"),
    (32, "strong", "uniform"),
    (32, "weak", "uniform"),
    (64, "strong", "uniform"),
    (64, "weak", "uniform"),
    (200, "strong", "uniform"),
    (200, "weak", "uniform"),
    (32, "strong", "complement_pairs"),
    (32, "weak", "complement_pairs"),
    (64, "strong", "complement_pairs"),
    (64, "weak", "complement_pairs"),
    (200, "strong", "complement_pairs"),
    (200, "weak", "complement_pairs"),
    (38, "strong", "balanced"),
    (38, "weak", "balanced"),
    (76, "strong", "balanced"),
    (76, "weak", "balanced"),
    (380, "strong", "balanced"),
    (380, "weak", "balanced"),
]
# Rows of the table of discoveries: models, sampling, classes in a subset, distribution of outcomes.
EMPTY: list[tuple[int, Sampling, int, str]] = [
    (64, "uniform", 10, "normal"),
    (200, "uniform", 10, "normal"),
    (64, "uniform", 10, "exponential"),
    (64, "uniform", 2, "normal"),
    (64, "uniform", 2, "exponential"),
    (200, "uniform", 2, "exponential"),
    (38, "balanced", 10, "normal"),
    (76, "balanced", 10, "normal"),
    (76, "balanced", 10, "exponential"),
]
SIZE_OF_EFFECTS = {"strong": 1.0, "weak": 0.2}


def draw_masks(
    models: int, sampling: Sampling, rng: np.random.Generator, size: int = CLASSES // 2
) -> np.ndarray:
    """Return bool (models, CLASSES): `size` classes each."""
    if sampling == "balanced":
        seed, subset = int(rng.integers(2**32)), Subset(sampling=sampling)
        return np.array([draw_mask(seed, model, CLASSES, subset) for model in range(models)])
    masks = rng.random((models, CLASSES)).argsort(axis=1) < size
    if sampling == "complement_pairs":
        masks[1::2] = ~masks[::2]
    return masks


def measured(masks: np.ndarray, outcome: np.ndarray) -> Measurements:
    """Return the measurements of one outcome (models,)."""
    models = np.arange(len(masks))
    return recognized(
        Measurements(
            models=models,
            groups=models,
            masks=Masks(np.packbits(masks, axis=1, bitorder="little"), CLASSES),
            targets=outcome[:, None],
            accuracy=np.empty((len(outcome), 0)),
            examples=Outcomes.of(outcome[:, None]),
        )
    )


def reliability(estimator: str, models: int, sampling: Sampling, world: str, studies: int) -> float:
    """Return the mean squared correlation of estimated and true influences."""
    noise, interaction = WORLDS[world]
    found = []
    for study in range(studies):
        rng = np.random.default_rng([study, models])
        effects = rng.normal(size=CLASSES)
        both = np.triu(rng.normal(0, interaction, (CLASSES, CLASSES)), 1)
        masks = draw_masks(models, sampling, rng)
        outcome = masks @ effects + rng.normal(0, noise, models)
        outcome += np.einsum("ij,jk,ik->i", masks, both, masks)
        data = measured(masks, outcome)
        influence = joined(ESTIMATORS[estimator](data).fit(Outcomes.of(data.whole))).influence
        # A class brings half of each pair that it is in, in models that have half of the classes.
        truth = effects + (both + both.T).sum(axis=1) * (CLASSES / 2 - 1) / (CLASSES - 1)
        defined = np.isfinite(influence[:, 0])
        if defined.sum() > 2 and np.ptp(influence[defined, 0]) > 0:
            found.append(np.corrcoef(influence[defined, 0], truth[defined])[0, 1])
        else:
            found.append(0.0)
    return float(np.mean(found)) ** 2


def models_for(goal: float, sizes: list[int], curve: list[float]) -> float:
    """Return where a curve over numbers of models first reaches a goal; NaN where it never does."""
    if curve[0] >= goal:
        return float(sizes[0])
    for place in range(1, len(curve)):
        if curve[place] >= goal:
            low, high = curve[place - 1 : place + 1]
            share = (goal - low) / (high - low) if low < goal else 0.0
            return float(np.exp(np.interp(share, [0, 1], np.log(sizes[place - 1 : place + 1]))))
    return np.nan


def coverage(
    estimator: str, intervals: str, models: int, size: str, sampling: Sampling, studies: int
) -> tuple[float, float]:
    """Return the share of intervals that hold the true influence, and its standard error."""
    shares = []
    for study in range(studies):
        rng = np.random.default_rng([1, study, models])
        effects = rng.normal(0, SIZE_OF_EFFECTS[size], CLASSES)
        masks = draw_masks(models, sampling, rng)
        counts = masks.sum(axis=0)
        if min(counts.min(), models - counts.max()) < 2:
            continue  # of a study with such a class, no influences are estimated
        data = measured(masks, masks @ effects + rng.normal(size=models))
        known = certainty_of(estimator, intervals, data, study)
        truth = effects - effects.mean()
        if estimator == "difference_in_means":  # a class comes in for one of the others
            truth *= CLASSES / (CLASSES - 1)
        shares.append(((known.low <= truth) & (truth <= known.high)).mean())
    return float(np.mean(shares)), float(np.std(shares, ddof=1) / np.sqrt(len(shares)))


def false_discoveries(
    estimator: str, models: int, sampling: Sampling, size: int, shape: str, studies: int
) -> tuple[float, float]:
    """Return the share of studies without effects that find one, and its standard error."""
    found = []
    for study in range(studies):
        rng = np.random.default_rng([2, study, models])
        masks = draw_masks(models, sampling, rng, size)
        if masks.sum(axis=0).min() < 2:
            continue  # of a study with such a class, no influences are estimated
        outcome = rng.normal(size=models) if shape == "normal" else rng.exponential(size=models)
        known = certainty_of(estimator, "closed_form", measured(masks, outcome), study)
        found.append((known.q_value <= FALSE_DISCOVERIES).any())
    share = float(np.mean(found))
    return share, float(np.sqrt(share * (1 - share) / len(found)))


def certainty_of(estimator: str, intervals: str, data: Measurements, seed: int) -> Certainty:
    """Return how sure the influences are that the study `data` gives."""
    stage = InfluenceStage(
        seed=seed,
        proof_fraction=0,
        accuracy="overall",
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
    elif arguments.table == "stopping":
        print_stopping(arguments.studies or 1000)
    else:
        print_models(arguments.studies or 40)


def print_coverage(studies: int) -> None:
    """Print a row for each kind of study."""
    for models, size, sampling in COVERED:
        row = f"| {models}, {size}, {sampling} |"
        for estimator in ("difference_in_means", "ridge"):
            for intervals in ("closed_form", "bootstrap"):
                if intervals == "bootstrap" and sampling == "balanced" and models < 380:
                    row += " refused |"
                    continue
                slow = (estimator, intervals) == ("ridge", "bootstrap")
                count = studies // (4 if slow else 1)
                share, error = coverage(estimator, intervals, models, size, sampling, count)
                row += f" {100 * share:.1f} ± {100 * error:.1f} % |"
        print(row, flush=True)


def print_discoveries(studies: int) -> None:
    """Print a row for each kind of study without effects."""
    for models, sampling, size, shape in EMPTY:
        row = f"| {models}, {sampling} subsets of {size}, {shape} |"
        for estimator in ("difference_in_means", "ridge"):
            share, error = false_discoveries(estimator, models, sampling, size, shape, studies)
            row += f" {100 * share:.1f} ± {100 * error:.1f} % |"
        print(row, flush=True)


def print_stopping(studies: int) -> None:
    """Print a row for each noise of a model and each mark."""
    for noise in (1.0, 2.0):
        for mark in (0.8, 0.9):
            found = np.array([grown(noise, mark, study) for study in range(studies)])
            models, said, low, truth = found.T
            off = said - truth
            error = off.std(ddof=1) / np.sqrt(studies)
            print(
                f"| {noise:g} | {mark} | {np.median(models):.0f} | {said.mean():.3f} | "
                f"{truth.mean():.3f} | {off.mean():.4f} ± {error:.4f} | "
                f"{100 * (low > truth).mean():.1f} % |",
                flush=True,
            )


def grown(noise: float, mark: float, study: int) -> tuple[int, float, float, float]:
    """Let a study grow until its reliability passes a mark.

    Returns:
        Models; the reliability that is said, and its lower end; the true one for these effects.
    """
    rng = np.random.default_rng([3, study])
    effects = rng.normal(size=CLASSES)
    seed, subset = int(rng.integers(2**32)), Subset(sampling="balanced")
    masks, outcome = np.empty((0, CLASSES), bool), np.empty(0)
    while True:
        numbers = range(len(masks), len(masks) + block_models(CLASSES))
        block = np.array([draw_mask(seed, model, CLASSES, subset) for model in numbers])
        masks = np.concatenate([masks, block])
        outcome = np.append(outcome, block @ effects + rng.normal(0, noise, len(block)))
        data = measured(masks, outcome)
        found = estimated_reliability(data, joined(DifferenceInMeans(data, 1e9).fit(data.examples)))
        if found is not None and found.low >= mark:
            spread = effects.var(ddof=1) * CLASSES / (CLASSES - 1)
            truth = spread / (spread + 4 * noise**2 / len(masks))
            return len(masks), found.value, found.low, truth


def print_models(studies: int) -> None:
    """Print a table for each world."""
    for world in WORLDS:
        print(f"\n{world}: reliability at so many models; models for 0.9")
        for sampling, sizes in SIZES.items():
            print(f"{sampling:38} {' '.join(f'{size:4}' for size in sizes)}")
            for estimator in ESTIMATORS:
                count = studies // (2 if estimator == "lasso" else 1)
                curve = [reliability(estimator, size, sampling, world, count) for size in sizes]
                needed = models_for(0.9, sizes, curve)
                name = f"  {estimator}"
                shown = " ".join(f"{value:.2f}" for value in curve)
                print(f"{name:38} {shown}  {needed:5.0f}", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "table",
        choices=["models", "coverage", "discoveries", "stopping"],
        help="what to print",
    )
    parser.add_argument(
        "--studies",
        type=int,
        help="simulated studies a point (default: 40; for coverage 400, for discoveries 5,000, for "
        "stopping 1,000)",
    )
    return parser


if __name__ == "__main__":
    main()
