#!/usr/bin/env python
"""Look for settings of the demo under which classes of the other kind really do harm.

    python benchmarks/demo_settings.py --width 8 --epochs 8

Removes all ten classes of one kind, digits or clothes, from the demo's source data, retrains, and
transfers to both targets: with as many epochs as before, and with as many optimizer steps. A
replicate has the same seeds with and without the classes, so differences are paired. Seeds are not
those of the demo. It needs the demo's converted data sets in results/demo/data and prints a row for
each target, mode and budget: the change in accuracy points when the other kind is removed, and when
the target's own kind is, with its 95 % interval and the p-value of no change.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_1samp

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from transfer_influence.config.recipe import Recipe, TargetRecipe
from transfer_influence.config.study import Study, read_study
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.models.building import freeze_for, load_backbone
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.training.trainer import Trainer

CHECKOUT = Path(__file__).parents[1]
CPU = torch.device("cpu")
OWN = {"uci_digits": "digit", "fashion_fewshot": "clothes"}  # the kind that a target is of
SEED = 1_000_003  # the demo's is 0


def recipes(study: Study, epochs: int) -> tuple[Recipe, dict[str, TargetRecipe]]:
    """Return the recipes of the sources, at so many epochs, and of the targets."""
    schedule = study.source.recipe.schedule.model_copy(update={"peak_epoch": epochs / 2})
    source = study.source.recipe.model_copy(update={"epochs": epochs, "schedule": schedule})
    return source, {name: target.recipe for name, target in study.targets.items()}


def main() -> None:
    """Train, transfer, print."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    study = read_study([CHECKOUT / "config" / "demo.yaml"])
    architecture = study.source.architecture.model_copy(update={"width": arguments.width})
    source_recipe, target_recipes = recipes(study, arguments.epochs)
    folder = arguments.data
    source = Trainer(folder / study.source.dataset, source_recipe, CPU, workers=1)
    targets = {
        name: Trainer(folder / study.dataset_of(name), recipe, CPU, workers=1)
        for name, recipe in target_recipes.items()
    }
    names = read_sidecar(folder / study.source.dataset / "dataset.json").classes
    is_digit = np.array([name.startswith("digit") for name in names])
    kept = {"all": np.ones(len(names), bool), "digit": is_digit, "clothes": ~is_digit}
    labels = source.train_loader.labels
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for replicate in range(arguments.replicates):
        for kind, budget in [("all", "epochs"), *product(OWN.values(), ("epochs", "steps"))]:
            seeds = TrainingSeeds.from_stream(stream(SEED, Stage.SOURCE, replicate))
            model = source.build(architecture, seeds.weights)
            source.fit(
                model,
                np.flatnonzero(kept[kind][labels]),
                seeds,
                "source",
                as_for=len(labels) if budget == "steps" else None,
            )
            for (name, trainer), mode in product(targets.items(), ("fixed", "full")):
                own = TrainingSeeds.from_stream(stream(SEED, Stage.TRANSFER, replicate, name, mode))
                transferred = trainer.build(architecture, own.weights)
                load_backbone(transferred, model.state_dict())
                freeze_for(transferred, mode)
                trainer.fit(transferred, np.arange(len(trainer.train_loader.labels)), own, name)
                accuracy = trainer.evaluate(transferred).accuracy
                found.setdefault((name, mode, kind, budget), []).append(100 * accuracy)
    for (name, mode), budget in product(product(OWN, ("fixed", "full")), ("epochs", "steps")):
        whole = np.array(found[name, mode, "all", "epochs"])
        other = next(kind for kind in OWN.values() if kind != OWN[name])
        cells = [f"width {arguments.width}, {arguments.epochs} epochs", name, mode, budget]
        cells.append(f"{whole.mean():.1f}")
        # What is left is the target's own kind, so the other one was removed; and the reverse.
        for left in (OWN[name], other):
            change = np.array(found[name, mode, left, budget]) - whole
            test = ttest_1samp(change, 0)
            low, high = test.confidence_interval()
            cells.append(f"{change.mean():+.1f} [{low:.1f}, {high:.1f}], p {test.pvalue:.2g}")
        print("| " + " | ".join(cells) + " |", flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, required=True, help="channels of the first stage")
    parser.add_argument("--epochs", type=int, required=True, help="of the source models")
    parser.add_argument("--replicates", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--data", type=Path, default=Path("results/demo/data"), help="converted data sets"
    )
    return parser


if __name__ == "__main__":
    main()
