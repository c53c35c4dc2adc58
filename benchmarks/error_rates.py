#!/usr/bin/env python
"""Measure how often the sentences of the report are wrong, in simulated studies without the effect.

Run it from the root of the checkout: python benchmarks/error_rates.py [STUDIES]
"""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow"))

from transfer_influence.applications.chance import Chance
from transfer_influence.applications.failures import judge, more_often
from transfer_influence.applications.opposed import opposed_p_values
from transfer_influence.config.study import Subset
from transfer_influence.counterfactual.verdicts import CLAIMS, differences, verdict
from transfer_influence.influence.estimators import DifferenceInMeans, joined
from transfer_influence.influence.intervals import FALSE_DISCOVERIES, q_values
from transfer_influence.influence.measurements import Masks, Measurements, Outcomes, recognized
from transfer_influence.outcomes.tables import list_column
from transfer_influence.subsets import draw_mask

CLASSES = 1000
UNITS, FAILURES = 20, 200


def main() -> None:
    """Print a line for each sentence and setting, with the share of studies in which it errs."""
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| sentence | studies without the effect | nominal | measured |")
    print("| --- | --- | --- | --- |")
    for columns, worst in [(columns, worst) for columns in (3, 12, 24) for worst in (False, True)]:
        wrong = (opposed_by_mistake(columns, worst, seed) for seed in range(studies))
        does = "each helps one target only" if worst else "half do less than the average for all"
        what = f"{columns} targets; of {CLASSES} classes {does}"
        print(f"| some classes pull targets apart | {what} | 5 % | {share(wrong)} |", flush=True)
    for claim in CLAIMS:
        for replicates, points in [(3, 2), (3, 6), (10, 2), (10, 10)]:
            wrong = (shown_by_mistake(claim, replicates, points, seed) for seed in range(studies))
            what = f"{replicates} replicates, {points} points"
            print(f"| {CLAIMS[claim].sentence} | {what} | 2.5 % | {share(wrong)} |", flush=True)
    for models, images in [(38, 200), (114, 200), (114, 2000)]:
        wrong = (beyond_by_mistake(models, images, seed) for seed in range(studies))
        what = f"{models} balanced models, {UNITS} classes, {images} images with common noise"
        print(f"| an image is helped, beyond chance | {what} | 5 % | {share(wrong)} |", flush=True)
    for models in (3, 10):
        wrong = (corrected_by_mistake(models, seed) for seed in range(studies))
        what = f"{FAILURES} failures, {models} models of a kind that are right at random"
        print(f"| a failure is corrected | {what} | 5 % | {share(wrong)} |", flush=True)


def share(wrong: Iterable[bool]) -> str:
    """Return the share of studies that err, with its standard error."""
    found = np.array(list(wrong))
    mean = found.mean()
    return f"{100 * mean:.1f} ± {100 * np.sqrt(mean * (1 - mean) / len(found)):.1f} %"


def opposed_by_mistake(columns: int, worst: bool, seed: int) -> bool:
    """Tell whether any class is called opposed where none is.

    The worst case is that each class helps one target for certain, and may seem to hurt another.
    """
    rng = np.random.default_rng(seed)
    means = np.zeros((columns, CLASSES))
    if worst:
        means[rng.integers(columns, size=CLASSES), np.arange(CLASSES)] = 20
    else:
        means[:, : CLASSES // 2] = -4
    influences = list(rng.normal(means))
    p_values = [2 * norm.sf(np.abs(one)) for one in influences]
    targets = [f"target {column}" for column in range(columns)]
    q_value = q_values(opposed_p_values(targets, influences, p_values))
    return bool((q_value <= FALSE_DISCOVERIES).any())


def shown_by_mistake(order: str, replicates: int, points: int, seed: int) -> bool:
    """Tell whether a curve shows its claim where removing anything changes nothing."""
    rng = np.random.default_rng(seed)
    luck = rng.normal(0, 0.03, replicates)  # of the seeds, which replicates share
    places = [("none", 0)]
    places += [(each, count) for each in (order, "random") for count in range(1, points + 1)]
    models = pd.DataFrame(
        [
            {"order": each, "removed": count, "replicate": replicate, "accuracy": accuracy}
            for each, count in places
            for replicate, accuracy in enumerate(luck + rng.normal(0, 0.02, replicates))
        ]
    )
    claim = CLAIMS[order]
    return bool(verdict(differences(models, order, claim.control), claim)[0])


def beyond_by_mistake(models: int, images: int, seed: int) -> bool:
    """Tell whether any image is said to be helped, beyond chance, where no class has an effect."""
    rng = np.random.default_rng(seed)
    subset = Subset(sampling="balanced")
    masks = np.array([draw_mask(seed, model, UNITS, subset) for model in range(models)])
    outcomes = rng.normal(size=(models, 1)) + rng.normal(size=(models, images))
    data = recognized(
        Measurements(
            models=np.arange(models),
            groups=np.arange(models),
            masks=Masks(np.packbits(masks, axis=1, bitorder="little"), UNITS),
            targets=outcomes.mean(axis=1, keepdims=True),
            accuracy=np.empty((models, 0)),
            examples=Outcomes.of(outcomes),
        )
    )
    fit = joined(DifferenceInMeans(data, 1e9).fit(data.examples))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "influences.parquet"
        columns = {
            "unit": np.arange(UNITS),
            "name": [str(unit) for unit in range(UNITS)],
            "example_influence": list_column(fit.influence.astype(np.float32)),
            "example_standard_error": list_column(fit.standard_error.astype(np.float32)),
            "example_freedom": fit.freedom.min(axis=1),
        }
        pq.write_table(pa.table(columns), path)
        chance = Chance.of(path, "example", side=1)
        sizes = fit.influence.ravel(), fit.standard_error.ravel(), fit.freedom.ravel()
        return bool((chance.q_values(*sizes) <= FALSE_DISCOVERIES).any())


def corrected_by_mistake(models: int, seed: int) -> bool:
    """Tell whether any failure is said to be corrected where removing a class changes nothing."""
    rng = np.random.default_rng(seed)
    right = rng.uniform(0, 0.5, FAILURES)  # of the models, about each
    hits = rng.binomial(models, right, (3, FAILURES))
    culprits = pd.DataFrame(
        {
            "p_value": [more_often(a, models, b, models) for a, b in hits[:2].T],
            **dict(
                zip(
                    ("removed_correct", "control_correct", "whole_correct"),
                    hits / models,
                    strict=True,
                )
            ),
        }
    )
    return bool(judge(culprits)["corrected"].fillna(False).any())


if __name__ == "__main__":
    main()
