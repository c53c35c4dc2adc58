"""The test images of a target: which of them rank the source units, and which prove the ranking.

A ranking that is judged by the images that made it looks better than it is: units are chosen for
what they do on just these images. So where units are removed, the images are divided.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_influence.config.recipe import Accuracy
from transfer_influence.config.stages import JudgedStage
from transfer_influence.datasets.held_out import hold_out
from transfer_influence.datasets.sidecar import read_labels
from transfer_influence.outcomes.measures import accuracies
from transfer_influence.seeds import Stage, stream


@dataclass(frozen=True)
class TestImages:
    """The test images of a target, and how one number is made of outcomes on them.

    Attributes:
        labels: int64 (images,).
        proves: whether an image proves the ranking, bool (images,); the others make it. Where none
            proves, all do both.
        accuracy: whether the mean over the target is that of its images, or of its classes.
    """

    __test__ = False  # for pytest, which takes it for a test by its name

    labels: np.ndarray
    proves: np.ndarray
    accuracy: Accuracy = "overall"

    @classmethod
    def divided(
        cls, labels: np.ndarray, fraction: float, seed: int, accuracy: Accuracy = "overall"
    ) -> "TestImages":
        """Return the test images, of which a share of each class proves the ranking.

        Targets with the same labels are divided in the same way. A class with a single image has
        none that proves.

        Args:
            labels: int64 (images,).
            fraction: that share; 0 for no division.
            seed: of the study.
            accuracy: see the attribute.
        """
        proves = np.zeros(len(labels), bool)
        if fraction:
            random = np.random.default_rng(stream(seed, Stage.DIVISION, 0))
            proves[hold_out(labels, fraction, random)[1]] = True
        return cls(labels, proves, accuracy)

    @property
    def ranking(self) -> np.ndarray:
        """The images that make the ranking, int64."""
        return np.flatnonzero(~self.proves)

    @property
    def proving(self) -> np.ndarray:
        """The images that prove it, int64."""
        return np.flatnonzero(self.proves) if self.proves.any() else self.ranking

    def means(self, outcomes: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Return the mean outcomes on each target class, and on the whole target.

        Args:
            outcomes: (models, images), on all test images.
            images: which of them count, int64.

        Returns:
            float64 (models, classes + 1), the whole target last; 0 for a class without such images,
            which does not count for the whole.
        """
        labels, values = self.labels[images], outcomes[:, images].astype(np.float64, copy=False)
        counts = np.bincount(labels, minlength=self.labels.max() + 1)
        order = np.argsort(labels, kind="stable")
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        there = counts > 0
        found = np.zeros((len(values), len(counts)))
        found[:, there] = np.add.reduceat(values[:, order], starts[there], axis=1) / counts[there]
        of_all = found[:, there] if self.accuracy == "per_class" else values
        return np.hstack([found, of_all.mean(axis=1, keepdims=True)])

    def accuracies(
        self, is_correct: np.ndarray, images: np.ndarray, classes: int
    ) -> tuple[float, np.ndarray]:
        """Return the accuracy of one model, and that of each class.

        Args:
            is_correct: bool (images,), on all test images.
            images: which of them count, int64.
            classes: how many the target has.

        Returns:
            The accuracy, and float64 (classes,), NaN for a class without such images.
        """
        per_class = self.accuracy == "per_class"
        return accuracies(is_correct[images], self.labels[images], classes, per_class)


def judged_images(stage: JudgedStage, labels: Path) -> TestImages:
    """Return the test images of a target as a study judges them.

    Args:
        stage: how.
        labels: the target's `test.labels.npy`.
    """
    return TestImages.divided(read_labels(labels), stage.proof_fraction, stage.seed, stage.accuracy)
