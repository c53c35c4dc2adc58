import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from transfer_influence.config.recipe import CyclicSchedule, Recipe
from transfer_influence.datasets import beton
from transfer_influence.datasets.conversion import convert
from transfer_influence.datasets.opening import RawDataset, open_dataset
from transfer_influence.errors import UserError

CPU = torch.device("cpu")


def random_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 4,
        "learning_rate": 0.1,
        "schedule": CyclicSchedule(peak_epoch=0),
        "resolution": 16,
    }
    return Recipe(**{**settings, **changes})


def write_settings(folder: Path, name: str, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def convert_arrays(folder: Path, images: np.ndarray, **settings: Any) -> Path:
    """Convert images, of two classes in turn, through an .npz file; every third is a test image."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.arange(len(images)) % 2
    test = np.arange(len(images)) % 3 == 2
    np.savez(
        folder / "images.npz",
        train_images=images[~test],
        train_labels=labels[~test],
        test_images=images[test],
        test_labels=labels[test],
    )
    source = str(folder / "images.npz")
    write_settings(folder, "made", kind="arrays", source=source, **settings)
    convert("made", [folder], folder / "converted")
    return folder / "converted"


def opened(folder: Path, **values: Any) -> RawDataset:
    write_settings(folder, "made", **values)
    return open_dataset("made", [folder])


def refused(folder: Path, match: str, **values: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        opened(folder, **values)
    sentence = str(caught.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFCV's pipelines as plain Python: slow, but nothing to compile."""
    monkeypatch.setattr(beton.Compiler, "is_enabled", False)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    # A test that failed may still have a file of it open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
