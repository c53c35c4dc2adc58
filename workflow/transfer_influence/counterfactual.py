"""Retrain with units removed, and see whether the target gets better or worse as predicted."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.config.stages import RemovalStage
from transfer_influence.errors import UserError
from transfer_influence.outcomes.summary import read_outcomes
from transfer_influence.outcomes.tables import read_provenance, read_table, write_table
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import LEAST_KEPT, SourceModel

log = logging.getLogger(__name__)


def retrained_models(stage: RemovalStage, ranking: Path | None, units: int) -> list[SourceModel]:
    """Return the models to train for one removal, one a replicate.

    A replicate has the same seeds whatever is removed, so that two points of a curve differ by the
    units and not by luck with the initial weights.

    Raises:
        UserError: too few units would be left, or the ranking is not one of all source units.
    """
    return [
        SourceModel(
            replicate,
            kept_mask(removal_order(stage, ranking, units, replicate)[: stage.count], units),
            TrainingSeeds.from_stream(stream(stage.seed, Stage.COUNTERFACTUAL_SOURCE, replicate)),
        )
        for replicate in range(stage.replicates)
    ]


def removal_order(
    stage: RemovalStage, ranking: Path | None, units: int, replicate: int
) -> np.ndarray:
    """Return all unit indices (int64) in the order in which a replicate loses them.

    The baseline, which has no order, loses none, so any order will do. A `random` order is another
    one for each replicate.

    Raises:
        UserError: the ranking is not one of all source units.
    """
    if stage.order is None:
        return np.arange(units)
    if stage.order == "random":
        seed = stream(stage.seed, Stage.REMOVAL, replicate)
        return np.random.default_rng(seed).permutation(units)
    if ranking is None:
        raise UserError(f"--ranking: not given, but order {stage.order!r} needs one; name a file.")
    ranked = read_table(ranking, ["unit"])["unit"].to_numpy().astype(np.int64)
    if not np.array_equal(np.sort(ranked), np.arange(units)):
        raise UserError(
            f"{ranking}: ranks {len(ranked)} units, but the source data set has {units}; estimate "
            f"the influences again."
        )
    return ranked if stage.order == "top" else ranked[::-1]


def kept_mask(removed: np.ndarray, units: int) -> np.ndarray:
    """Return the bool mask (units,) that is false for the removed units.

    Raises:
        UserError: fewer than two units would be left to train on.
    """
    if len(removed) > units - LEAST_KEPT:
        raise UserError(
            f"counterfactuals.counts: removing {len(removed)} of {units} units leaves fewer than "
            f"{LEAST_KEPT} to train on; lower it."
        )
    mask = np.ones(units, dtype=bool)
    mask[removed] = False
    return mask


def summarize_counterfactual(
    transfers: list[Path], sources: list[Path], output: Path, provenance: str
) -> None:
    """Write one row a retrained model, but for those that failed.

    Columns: `order` (`none` for the baseline), `removed` (number of units), `replicate`,
    `accuracy`, `class_accuracy` and `auroc` on the target's test split, `source_accuracy` on the
    classes that were left, and `mask`.

    Args:
        transfers: tables of transferred models, one for each removal.
        sources: tables of the retrained source models, in the same order.
        output: Parquet file to write.
        provenance: of the output.

    Raises:
        UserError: the models of a transfer are not those of its sources, or all of them failed.
    """
    tables = []
    for path, source_path in zip(transfers, sources, strict=True):
        removal = read_provenance(source_path)["settings"]
        rows, source, failed = read_outcomes(path, source_path)
        if not len(rows):
            raise UserError(
                f"{path}: the training of all its models failed ({failed}); change the recipe, or "
                f"leave {removal['count']} out of counterfactuals.counts."
            )
        if failed:
            log.warning("%s: without replicates %s, whose training failed", path, failed)
        columns = {
            "order": [removal["order"] or "none"] * len(rows),
            "removed": pa.array([removal["count"]] * len(rows), pa.int32()),
            "replicate": rows["model"],
            "accuracy": rows["accuracy"],
            "class_accuracy": rows["class_accuracy"],
            "auroc": rows["auroc"],
            "source_accuracy": source["accuracy"],
            "mask": source["mask"],
        }
        tables.append(pa.table(columns))
    write_table(pa.concat_tables(tables), output, provenance)
