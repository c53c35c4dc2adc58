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
    stage: RemovalStage, ranking: Path | None, names: Sequence[str]
) -> list[SourceModel]:
    """Return the models to train without some of the units called `names`.

    Their numbers are those of the replicates. A replicate has the same seeds whatever is removed,
    so that two points of a curve differ by the units and not by luck with the initial weights.

    Raises:
        UserError: too few units would be left; or see `removal_order`.
    """
    models = []
    for replicate in stage.replicates:
        removed = removal_order(stage, replicate, ranking, names)[: stage.count]
        seeds = stream(stage.seed, Stage.COUNTERFACTUAL_SOURCE, replicate)
        mask = kept_mask(removed, len(names))
        models.append(SourceModel(replicate, mask, TrainingSeeds.from_stream(seeds)))
    return models


def removal_order(
    stage: RemovalStage, replicate: int, ranking: Path | None, names: Sequence[str]
) -> np.ndarray:
    """Return unit indices (int64) in the order in which the model loses them.

    All units, or for a named order those of its list. The baseline, which has no order, loses none,
    so any order will do. A `random` order is another one for each replicate.

    Args:
        stage: what to remove.
        replicate: number of the model.
        ranking: table of the ranking, or of a surrogate's; or the list of a named order.
        names: of all source units.

    Raises:
        UserError: the ranking is not one of all source units, or the list is wrong.
    """
    units = len(names)
    if stage.order is None:
        return np.arange(units)
    if stage.order == "random":
        seed = stream(stage.seed, Stage.REMOVAL, replicate)
        return np.random.default_rng(seed).permutation(units)
    if ranking is None:
        raise UserError(f"--ranking: not given, but order {stage.order!r} needs one; name a file.")
    if ranking.suffix != ".parquet":
        return read_units(ranking, names)
    ranked = read_table(ranking, ["unit"])["unit"].to_numpy().astype(np.int64)
    if not np.array_equal(np.sort(ranked), np.arange(units)):
        raise UserError(
            f"{ranking}: ranks {len(ranked)} units, but the source data set has {units}; estimate "
            f"the influences again."
        )
    return ranked[::-1] if stage.order == "bottom" else ranked


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
