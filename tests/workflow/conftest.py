"""A tiny study of real handwritten digits, run through the real DAG."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

CHECKOUT = Path(__file__).parents[2]
RECIPE = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.1,
    "schedule": {"kind": "cyclic", "peak_epoch": 1},
    "resolution": 8,
}
STUDY = {
    "study": "tiny",
    "models": 8,
    "models_per_job": 4,
    "source": {
        "dataset": "digits",
        "architecture": {"name": "small_resnet", "width": 4},
        "recipe": RECIPE,
    },
    "targets": {
        "photos": {"modes": ["fixed", "full"], "recipe": RECIPE},
        "held_out": {
            "modes": ["fixed"],
            "recipe": {**RECIPE, "batchnorm": "frozen", "loader": "stream"},
        },
    },
    "counterfactuals": {"orders": ["top", "bottom", "random"], "counts": [0, 2], "replicates": 1},
}
DATASETS = {
    "digits": {"kind": "arrays", "source": "digits.npz", "maximum": 16},
    "held_out": {
        "kind": "arrays",
        "source": "held_out.npz",
        "maximum": 16,
        "split": {"train_per_class": 8},
    },
    "photos": {"kind": "folder", "train": "photos", "split": {"train_per_class": 8}},
}


@dataclass(frozen=True)
class Project:
    """A user's folder: images, config, and results; and the checkout that is run in it."""

    folder: Path
    checkout: Path = CHECKOUT

    @property
    def results(self) -> Path:
        return self.folder / "results" / "tiny"

    def write_study(self, **changes) -> Path:
        path = self.folder / "config" / "tiny.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**STUDY, **changes}))
        return path

    def write_dataset(self, name: str, settings: dict) -> None:
        path = self.folder / "config" / "datasets" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(settings))

    def command(self, *arguments: str) -> list[str]:
        """Return the command that runs Snakemake on the study."""
        return [
            *(sys.executable, "-m", "snakemake", "--snakefile", str(self.checkout / "Snakefile")),
            *("--configfile", "config/tiny.yaml", *arguments),
        ]

    def snakemake(self, *arguments: str, cores: int = 2) -> subprocess.CompletedProcess[str]:
        """Run Snakemake on the study, as a user would."""
        here = ("--cores", str(cores), "--scheduler", "greedy", "--show-failed-logs")
        command = self.command(*here, *arguments)
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=800, check=False
        )

    def run_script(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the checkout in the project's folder."""
        command = [sys.executable, str(self.checkout / "scripts" / name), *arguments]
        env = {**os.environ, "PYTHONPATH": str(self.checkout / "workflow")}
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )

    def planned(self) -> set[str]:
        """Return the jobs a dry run plans, each by its rule's message with the wildcards in it."""
        run = self.snakemake("--dry-run")
        said = run.stdout + run.stderr
        assert run.returncode == 0, said
        if "Nothing to be done" in said:
            return set()
        jobs = re.findall(r"^Job \d+: (.+)$", said, re.MULTILINE)
        total = int(re.findall(r"^total +(\d+)$", said, re.MULTILINE)[0])
        assert len(set(jobs)) == total - 1, f"not one message a job besides `rule all`: {said}"
        return set(jobs)


def write_project(folder: Path) -> Project:
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8).astype(np.uint8)
    per_class = [np.flatnonzero(labels == label) for label in range(10)]

    def part(first: int, last: int) -> dict[str, np.ndarray]:
        chosen = np.concatenate([members[first:last] for members in per_class])
        return {"images": images[chosen], "labels": labels[chosen].astype(np.int64)}

    train, test = part(0, 40), part(40, 60)
    np.savez(
        folder / "digits.npz",
        **{f"train_{key}": value for key, value in train.items()},
        **{f"test_{key}": value for key, value in test.items()},
    )
    np.savez(folder / "held_out.npz", **part(60, 90))
    photos = part(90, 120)
    for index, (image, label) in enumerate(zip(photos["images"], photos["labels"], strict=True)):
        path = folder / "photos" / f"digit-{label}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image * 15).save(path)
    project = Project(folder)
    project.write_study()
    for name, settings in DATASETS.items():
        project.write_dataset(name, settings)
    return project


@pytest.fixture
def project(tmp_path) -> Project:
    """A project in which nothing has run yet."""
    return write_project(tmp_path)


@pytest.fixture(scope="session")
def _finished(tmp_path_factory) -> Project:
    folder = tmp_path_factory.mktemp("finished")
    # With several test processes, the first one to come runs the study for all of them.
    shared = folder.parent.parent if "PYTEST_XDIST_WORKER" in os.environ else folder.parent
    with (shared / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "run").exists():
            project = write_project(tmp_path_factory.mktemp("run"))
            run = project.snakemake()
            assert run.returncode == 0, run.stdout + run.stderr
            project.folder.rename(shared / "run")
    shutil.copytree(shared / "run", folder, symlinks=True, dirs_exist_ok=True)
    return Project(folder)


@pytest.fixture
def finished(_finished) -> Project:
    """A project whose study has run to its end; its config may be changed, its results not."""
    yield _finished
    _finished.write_study()


@pytest.fixture
def finished_copy(_finished, tmp_path) -> Project:
    """A copy of the finished project, to run things in."""
    shutil.copytree(_finished.folder, tmp_path / "copy", symlinks=True)
    return Project(tmp_path / "copy")
