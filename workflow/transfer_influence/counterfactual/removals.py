"""Which units a retrained model loses."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transfer_influence.config.stages import RemovalStage
from transfer_influence.errors import UserError
from transfer_influence.outcomes.tables import read_table
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import LEAST_KEPT, SourceModel, pack, read_units


def retrained_models(
    stage: RemovalStage, ranking: Path | None, names: Sequence[str], images: np.ndarray
) -> list[SourceModel]:
    """Return the models to train without some of the units called `names`.

    `images` are the numbers of their training images, int64 (units,). The models' numbers are those
    of the replicates. A replicate has the same seeds whatever is removed, so that two points of a
    curve differ by the units and not by luck with the initial weights.

    Raises:
        UserError: too few units would be left; or see `removal_order`.
    """
    models = []
    for replicate in stage.replicates:
        removed = removal_order(stage, replicate, ranking, names, images)[: stage.count]
        seeds = stream(stage.seed, Stage.COUNTERFACTUAL_SOURCE, replicate)
        mask = kept_mask(removed, len(names))
        models.append(SourceModel(replicate, mask, TrainingSeeds.from_stream(seeds)))
    return models


def removal_order(
    stage: RemovalStage,
    replicate: int,
    ranking: Path | None,
    names: Sequence[str],
    images: np.ndarray,
) -> np.ndarray:
    """Return unit indices (int64) in the order in which the model loses them.

    All units, or for a named order those of its list. The baseline, which has no order, loses none,
    so any order will do. A `random` order is another one for each replicate, and so is a
    `random_matched` one, which holds for the number of units that the stage removes.

    Args:
        stage: what to remove.
        replicate: number of the model.
        ranking: table of the ranking, or of a surrogate's; or the list of a named order.
        names: of all source units.
        images: training images of each, int64 (units,).

    Raises:
        UserError: the ranking is not one of all source units, or the list is wrong.
    """
    units = len(names)
    if stage.order is None:
        return np.arange(units)
    random = np.random.default_rng(stream(stage.seed, Stage.REMOVAL, replicate))
    if stage.order == "random":
        return random.permutation(units)
    if ranking is None:
        raise UserError(f"--ranking: not given, but order {stage.order!r} needs one; name a file.")
    if ranking.suffix != ".parquet":
        listed = read_units(ranking, names)
        return np.setdiff1d(np.arange(units), listed) if stage.keeps else listed
    ranked = read_table(ranking, ["unit"])["unit"].to_numpy().astype(np.int64)
    if not np.array_equal(np.sort(ranked), np.arange(units)):
        raise UserError(
            f"{ranking}: ranks {len(ranked)} units, but the source data set has {units}; estimate "
            f"the influences again."
        )
    if stage.order == "random_matched":
        return matched_order(ranked[: stage.count], images, random)
    return ranked[::-1] if stage.order == "bottom" else ranked


def matched_order(top: np.ndarray, images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return units in random order, of which the first have as many images as the top ones.

    Random units are drawn, as many as `top`; then one of them at a time is exchanged for another,
    which brings their images nearest to those of `top`, until no exchange brings them nearer.

    Args:
        top: the most helpful units, int64 (k,).
        images: training images of each unit, int64 (units,).
        random: draws.

    Returns:
        All units, int64 (units,); the first k are matched.
    """
    order = random.permutation(len(images))
    drawn, others = order[: len(top)], order[len(top) :]
    while len(drawn) and len(others):
        missing = images[top].sum() - images[drawn].sum()
        left = np.abs(missing - (images[others] - images[drawn, None]))  # after each exchange
        one, other = np.unravel_index(left.argmin(), left.shape)
        if left[one, other] >= abs(missing):
            break
        drawn[one], others[other] = others[other], drawn[one]
    return order


def kept_mask(removed: np.ndarray, units: int) -> np.ndarray:
    """Return the bool mask (units,) that is false for the removed units.

    Raises:
        UserError: fewer than two units would be left to train on.
    """
    if len(removed) > units - LEAST_KEPT:
        raise UserError(
            f"counterfactuals: removing {len(removed)} of {units} units leaves fewer than "
            f"{LEAST_KEPT} to train on; lower `counts`, or shorten the list."
        )
    mask = np.ones(units, dtype=bool)
    mask[removed] = False
    return mask


def mask_digest(mask: np.ndarray) -> str:
    """Digest the bool mask (units,) of a retrained model.

    It stands for the ranking or list in the model's origin: one with other standard errors, or
    another order among the units that all go, trains the same model, which is there already.
    """
    return hashlib.sha256(pack(mask)).hexdigest()[:16]
