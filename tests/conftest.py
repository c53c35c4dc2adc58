"""What the tests of several rooms share."""

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import yaml

CHECKOUT = Path(__file__).parents[1]
CLASSES, TRAIN_PER_CLASS, TEST_PER_CLASS, SIDE = 6, 20, 10, 16

hypothesis.settings.register_profile(
    "tests", deadline=None, max_examples=50, derandomize=True, database=None
)
hypothesis.settings.load_profile("tests")


def recipe_values(**changes: Any) -> dict[str, Any]:
    """The settings of a recipe that suits the planted data set."""
    return {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.1,
        "schedule": {"kind": "cyclic", "peak_epoch": 1},
        "resolution": SIDE,
        **changes,
    }


def planted_images(per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise around a colour of its own for each class, in a shuffled order."""
    rng = np.random.default_rng(seed)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    colours = np.concatenate([colours, 240 - colours])
    labels = rng.permutation(np.repeat(np.arange(CLASSES), per_class))
    noise = rng.normal(0, 30, (len(labels), SIDE, SIDE, 3))
    images = np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)
    return images, labels


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted data set of six classes that are easy to tell apart."""
    import torch

    from transfer_influence.datasets.conversion import convert

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("planted")
    train, train_labels = planted_images(TRAIN_PER_CLASS, seed=1)
    test, test_labels = planted_images(TEST_PER_CLASS, seed=2)
    np.savez(
        folder / "images.npz",
        train_images=train,
        train_labels=train_labels,
        test_images=test,
        test_labels=test_labels,
    )
    settings = {"kind": "arrays", "source": str(folder / "images.npz")}
    (folder / "planted.yaml").write_text(yaml.safe_dump(settings))
    convert("planted", [folder], folder / "data")
    return folder / "data"
