"""The part of a target's training images by which the best number to remove is chosen."""

import numpy as np

from transfer_influence.config.stages import RetrainedTransferStage
from transfer_influence.datasets.held_out import hold_out
from transfer_influence.errors import UserError
from transfer_influence.seeds import Stage, stream
from transfer_influence.training.transfers import ValidationSplit


def validation_split(stage: RetrainedTransferStage) -> ValidationSplit | None:
    """Return how a target's training images are split; None if they are not.

    The split is the same for all models and both modes. It raises a UserError if no class has two
    images.
    """
    if stage.validation_fraction == 0:
        return None

    def split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seed = stream(stage.seed, Stage.VALIDATION, 0, stage.target)
        left, held_out = hold_out(labels, stage.validation_fraction, np.random.default_rng(seed))
        if not len(held_out):
            raise UserError(
                f"target {stage.target!r}: no class has two training images, so none can be held "
                "out; set counterfactuals.validation_fraction to 0."
            )
        return left, held_out

    return split
