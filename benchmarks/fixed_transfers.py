#!/usr/bin/env python
"""Time a transfer in mode `fixed`: each epoch on images, on kept features, and solved by L-BFGS.

    python benchmarks/fixed_transfers.py [--images 1000] [--epochs 24]

The network is frozen with its BatchNorm statistics, images are shown as they are or mirrored at
random, and the target has as many test images as training images, which are evaluated at the end.
Random images serve, as pixels do not change how long anything takes. One thread; the best of two
runs. It prints seconds, and how many times faster than on images.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

from transfer_influence.config.recipe import Architecture, TargetRecipe
from transfer_influence.datasets.conversion import convert
from transfer_influence.models.building import freeze_for
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training import trainer
from transfer_influence.training.devices import best_device
from transfer_influence.training.trainer import Trainer

# Name, network, side of the images in pixels.
NETWORKS = [
    ("small_resnet, width 16, 28 pixels", Architecture(), 28),
    ("resnet18, 64 pixels", Architecture(name="resnet18"), 64),
]
CLASSES, RUNS = 10, 2
SEEDS = TrainingSeeds(0, 0, 0)


def converted(folder: Path, images: int, side: int) -> Path:
    """Convert random images; return the folder."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2 * images, side, side, 3), dtype=np.uint8)
    labels = np.arange(2 * images) % CLASSES
    folder.mkdir()
    np.savez(
        folder / "images.npz",
        train_images=pixels[:images],
        train_labels=labels[:images],
        test_images=pixels[images:],
        test_labels=labels[images:],
    )
    settings = {"kind": "arrays", "source": str(folder / "images.npz")}
    (folder / "random.yaml").write_text(yaml.safe_dump(settings))
    convert("random", [folder], folder / "data")
    return folder / "data"


def recipe(epochs: int, side: int, flip: bool) -> TargetRecipe:
    """Return the recipe of the transfers."""
    return TargetRecipe.model_validate(
        {
            "epochs": epochs,
            "batch_size": 64,
            "learning_rate": 0.01,
            "schedule": {"kind": "cyclic", "peak_epoch": 2},
            "resolution": side,
            "batchnorm": "frozen",
            "augmentation": {"flip": flip},
            "head": {} if flip else {"solver": "lbfgs"},
        }
    )


def seconds(made: Trainer, architecture: Architecture, way: str) -> float:
    """Return how long one transfer takes, with its evaluation."""
    examples = np.arange(len(made.train_loader.labels))
    model = made.build(architecture, seed=0)
    freeze_for(model, "fixed")
    started = time.monotonic()
    if way == "solved":
        made.solve_head(model, examples, "model")
    elif way == "images":
        with mock.patch.object(trainer, "keeps_features", return_value=False):
            made.fit(model, examples, SEEDS, "model")
    else:
        made.fit(model, examples, SEEDS, "model")
    made.evaluate(model)
    return time.monotonic() - started


def main() -> None:
    """Print a line for each network and view."""
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    for name, architecture, side in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            data = converted(Path(folder) / "random", arguments.images, side)
            for flip in (False, True):
                how = recipe(arguments.epochs, side, flip)
                made = Trainer(data, how, best_device(), workers=1)
                made.evaluate(made.build(architecture, seed=0))  # opens the images
                found = {
                    way: min(seconds(made, architecture, way) for _ in range(RUNS))
                    for way in ("images", "features", *(() if flip else ("solved",)))
                }
                row = {"network": name, "mirrored": flip, "images_s": round(found["images"], 2)}
                for way in list(found)[1:]:
                    row[f"{way}_s"] = round(found[way], 2)
                    row[f"{way}_times_faster"] = round(found["images"] / found[way], 1)
                print(json.dumps(row), flush=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=1000, help="training images")
    parser.add_argument("--epochs", type=int, default=24, help="of the transfers")
    return parser


if __name__ == "__main__":
    main()
