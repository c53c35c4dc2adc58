"""All retrained models of one (target, mode), in one table."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from transfer_influence.config.study import BASELINE, Budget, FailedModels
from transfer_influence.errors import UserError
from transfer_influence.outcomes.measures import area_of_margins
from transfer_influence.outcomes.summary import read_outcomes
from transfer_influence.outcomes.tables import list_column, matrix, read_table, write_table
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.provenance import read_provenance

log = logging.getLogger(__name__)

VALIDATION = {"validation_accuracy": pa.float64(), "validation_images": pa.int32()}


def summarize_counterfactual(
    transfers: list[Path],
    sources: list[Path],
    images: TestImages,
    failed_models: FailedModels,
    output: Path,
    provenance: str,
) -> None:
    """Write one row a retrained model, but for those that failed.

    Columns: `order` (`none` for the baseline), `budget` (by which the model was retrained, `epochs`
    or `steps`; null for the baseline), `removed` (number of units), `replicate`,
    `accuracy` on the target's test images that prove the ranking, `validation_accuracy` on its
    validation split and `validation_images`, the size of that (null if there is none),
    `class_accuracy` and `auroc` on the images that prove, `proving_images`, how many these are,
    `images` that the source model was trained on and `steps` that it took, `source_accuracy` before
    the transfer, on the source's test split (of the classes that were left, where classes are
    removed), and `mask`.

    Args:
        transfers: tables of transferred models, one for each removal.
        sources: tables of the retrained source models, in the same order.
        images: the target's test images.
        failed_models: whether a model that failed stops the study.
        output: Parquet file to write.
        provenance: of the output.

    Raises:
        UserError: the models of a transfer are not those of its sources; a model failed and
            `failed_models` is "stop"; all replicates of a point failed.
    """
    tables = []
    units = 0  # of the source; counted when the first whole list asks for it
    left: set[Point] = set()  # points with a model
    failed: dict[Point, tuple[Path, list[int]]] = {}  # with a table, and who failed there
    for path, source_path in zip(transfers, sources, strict=True):
        removal = read_provenance(source_path)["settings"]
        budget = removal["budget"] if removal["order"] else None
        rows, source, lost = read_outcomes(path, source_path)
        removed = removal["count"]
        if removed is None:  # a whole list
            units = units or units_seen(sources)
            removed = units - units_seen([source_path])
        point = Point(removal["order"] or BASELINE, budget, removed)
        if lost:
            failed[point] = path, lost
            log.warning("%s: without replicates %s, whose training failed", path, lost)
        if len(rows):
            tables.append(point_rows(point, rows, source, images))
            left.add(point)
    for point, (path, lost) in failed.items():
        if point not in left:
            # The baseline cannot be left out.
            count = point.removed
            spared = f", or leave {count} out of counterfactuals.counts" if count else ""
            raise UserError(
                f"{path}: the training of all replicates failed; change the recipe{spared}."
            )
        if failed_models == "stop":
            numbers = ", ".join(map(str, lost))
            raise UserError(
                f"{path}: the training of replicate(s) {numbers} with {point.removed} units "
                f"removed ({point.order}) failed; change the recipe, or go on without them by "
                f"failed_models: exclude."
            )
    write_table(pa.concat_tables(tables), output, provenance)


def units_seen(sources: list[Path]) -> int:
    """Return how many units those models have seen that have seen most: of a study, all."""
    masks = (read_table(path, ["mask"])["mask"][0].as_py() for path in sources)
    return max(int.from_bytes(mask).bit_count() for mask in masks)


class Point(NamedTuple):
    """A point of a curve: an order, what retraining may take, and how many units are removed."""

    order: str
    budget: Budget | None
    removed: int


def point_rows(point: Point, rows: pa.Table, source: pa.Table, images: TestImages) -> pa.Table:
    """Return the rows of the models of one point of a curve.

    Args:
        point: which one.
        rows: transferred models.
        source: the retrained source models, in the same order.
        images: the target's test images.
    """
    proving, classes = images.proving, rows["class_accuracy"].type.list_size
    correct = matrix(rows["is_correct"]).astype(bool)
    accuracies, of_classes = zip(
        *(images.accuracies(row, proving, classes) for row in correct), strict=True
    )
    return pa.table(
        {
            "order": [point.order] * len(rows),
            "budget": pa.array([point.budget] * len(rows), pa.string()),
            "removed": pa.array([point.removed] * len(rows), pa.int32()),
            "replicate": rows["model"],
            "accuracy": pa.array(accuracies, pa.float64()),
            **{
                name: rows[name] if name in rows.column_names else pa.nulls(len(rows), of)
                for name, of in VALIDATION.items()
            },
            "class_accuracy": list_column(np.stack(of_classes)),
            "auroc": pa.array(_areas(rows, classes, images), pa.float64()),
            "proving_images": pa.array([len(proving)] * len(rows), pa.int32()),
            "images": source["images"],
            "steps": source["steps"],
            "source_accuracy": source["accuracy"],
            "mask": source["mask"],
        }
    )


def _areas(rows: pa.Table, classes: int, images: TestImages) -> list[float | None]:
    """Return the area under the ROC curve of each model; None where there are not two classes."""
    if classes != 2:
        return [None] * len(rows)
    proving = images.proving
    margins = matrix(rows["raw_margin"])[:, proving]
    return [area_of_margins(row, images.labels[proving]) for row in margins]
