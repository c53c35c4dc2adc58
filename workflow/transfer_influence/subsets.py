"""Which source classes a source model sees.

A *mask* is a bool array (classes,), true where the class is kept. On disk it is packed, one bit a
class, lowest bit first.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import Subset
from transfer_influence.errors import UserError
from transfer_influence.seeds import Stage, TrainingSeeds, stream


@dataclass(frozen=True)
class SourceModel:
    """A source model to train: its number, the classes it sees, its seeds."""

    model: int
    mask: np.ndarray  # bool (classes,)
    seeds: TrainingSeeds


def source_models(stage: SourceStage, models: Iterable[int], classes: int) -> list[SourceModel]:
    """Return source models by their numbers, each with a random subset of `classes`.

    Raises:
        UserError: see `draw_mask`.
    """
    return [
        SourceModel(
            model,
            draw_mask(stage.seed, model, classes, stage.subset),
            TrainingSeeds.from_stream(stream(stage.seed, Stage.SOURCE, model)),
        )
        for model in models
    ]


def draw_mask(study_seed: int, model: int, classes: int, subset: Subset) -> np.ndarray:
    """Draw the mask of one source model: `subset` classes, uniformly without replacement.

    Raises:
        UserError: the subset leaves nothing to compare, as it holds none or all of the classes.
    """
    size = subset.size(classes)
    if not 1 <= size < classes:
        raise UserError(
            f"source.subset: {size} of {classes} classes; choose a subset with at least 1 class "
            f"and fewer than {classes}."
        )
    chosen = np.random.default_rng(stream(study_seed, Stage.SUBSET, model)).permutation(classes)
    mask = np.zeros(classes, dtype=bool)
    mask[chosen[:size]] = True
    return mask


def pack(mask: np.ndarray) -> bytes:
    """Pack a mask, one bit a class."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack(packed: list[bytes], classes: int) -> np.ndarray:
    """Unpack masks, one row each: bool (len(packed), classes)."""
    rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), -1)
    return np.unpackbits(rows, axis=1, count=classes, bitorder="little").astype(bool)


def examples_of(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the indices (int64) of the examples whose class the mask keeps."""
    return np.flatnonzero(mask[labels])
