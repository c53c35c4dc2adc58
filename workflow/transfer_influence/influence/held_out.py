"""Random parts of the models. Models that were drawn together stay together."""

import numpy as np

from transfer_influence.influence.measurements import Measurements
from transfer_influence.seeds import Stage, stream


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of a study for one purpose."""
    return np.random.default_rng(stream(seed, Stage.INFLUENCE, 0, purpose))


def split(together: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the models to fit (indices, int64) and the held-out ones: about `share` of all.

    At least two models or pairs are held out, and two are left where there are four; of blocks, one
    is held out at least, and one is left where there are two.

    Args:
        together: int64 (models,), a number that models share which stay together.
        share: of the groups.
        seed: of the study.
    """
    groups = np.unique(together)
    least = 2 if len(together) <= 2 * len(groups) else 1
    count = max(least, min(round(share * len(groups)), len(groups) - least))
    chosen = generator(seed, "held out").permutation(groups)[:count]
    held_out = np.isin(together, chosen)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def bootstrap(data: Measurements, draws: int, seed: int) -> np.ndarray:
    """Return how often each draw holds each model: int64 (draws, models), with replacement."""
    _, groups = np.unique(data.groups, return_inverse=True)
    count = groups.max() + 1
    shares = np.full(count, 1 / count)
    return generator(seed, "bootstrap").multinomial(count, shares, draws)[:, groups]


def disjoint(
    data: Measurements, size: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each draw, two parts of the models without a common one.

    Args:
        data: the models.
        size: of each part, in groups of models drawn together.
        draws: how many.
        rng: where to draw from.

    Returns:
        Two arrays of 0 and 1, int64 (draws, models).
    """
    _, groups = np.unique(data.groups, return_inverse=True)
    parts = np.zeros((2, draws, groups.max() + 1), np.int64)
    for draw in range(draws):
        order = rng.permutation(groups.max() + 1)
        parts[0, draw, order[:size]] = 1
        parts[1, draw, order[size : 2 * size]] = 1
    return parts[0][:, groups], parts[1][:, groups]


def without_each_part(data: Measurements, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return which models are left when one of up to `most` parts is left out, for each part.

    The parts are about the same size, and together they are all models; complements stay together.

    Returns:
        bool (parts, models).
    """
    _, groups = np.unique(data.partners, return_inverse=True)
    count = groups.max() + 1
    parts = min(most, count)
    return rng.permutation(count)[groups] % parts != np.arange(parts)[:, None]
