"""Every random stream of a study, from the study's seed alone.

Model *i* depends on (study seed, *i*) and on nothing else: not on how many models there are, nor
on how many share a job. Growing a study therefore leaves the models it already has untouched.
"""

import zlib
from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Stage(IntEnum):
    """What a random stream is for. The numbers are part of the results: never renumber."""

    SUBSET = 0
    SOURCE = 1
    TRANSFER = 2
    REMOVAL = 3
    COUNTERFACTUAL_SOURCE = 4
    VALIDATION = 5
    DIVISION = 6
    INFLUENCE = 10


def stream(study_seed: int, stage: Stage, index: int, *scope: str) -> np.random.SeedSequence:
    """Return the seed sequence of item `index` of a stage.

    `scope` separates items that share an index, such as the transfers of one source model to two
    targets; its words enter through CRC-32, which is the same on every machine.
    """
    words = (zlib.crc32("/".join(scope).encode()),) if scope else ()
    return np.random.SeedSequence(study_seed, spawn_key=(int(stage), index, *words))


@dataclass(frozen=True)
class TrainingSeeds:
    """The seeds of one training run, each below 2**63."""

    weights: int
    order: int
    augmentation: int

    def __str__(self) -> str:
        return f"{self.weights}/{self.order}/{self.augmentation}"

    @classmethod
    def from_stream(cls, sequence: np.random.SeedSequence) -> "TrainingSeeds":
        """Draw the three seeds from a stream; the same stream gives the same seeds."""
        state = sequence.generate_state(3, np.uint64) >> np.uint64(1)
        return cls(*(int(word) for word in state))
