"""What influences are estimated from: the masks of all models, and their outcomes.

A *column* of outcomes is a target example, a target class (the mean over its examples), or the
whole target. Masks stay packed, and the outcomes on single examples stay in their file, from which
they are read chunk by chunk; only the few columns on target classes and the whole target are held.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence.config.study import Outcome, Sampling
from transfer_influence.errors import UserError
from transfer_influence.hadamard import smallest_order
from transfer_influence.outcomes.measures import area_of_margins
from transfer_influence.outcomes.tables import damage_named, matrix, open_table
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.subsets import block_models, check_both_sides

log = logging.getLogger(__name__)

CHUNK = 256  # models at a time
SCALARS = {"accuracy": "is_correct", "auroc": "raw_margin"}  # outcomes, and what they are made of
GIGABYTE = 10**9


@dataclass(frozen=True)
class Masks:
    """Which classes the models saw, packed: uint8 (models, bytes), one bit a class."""

    packed: np.ndarray
    classes: int

    def __len__(self) -> int:
        return len(self.packed)

    def rows(self, models: np.ndarray, units: slice = slice(None)) -> np.ndarray:
        """Return masks as float64 (models, units); `units` starts at a multiple of 8."""
        first, last, _ = units.indices(self.classes)
        part = self.packed[models, first // 8 : -(-last // 8)]
        bits = np.unpackbits(part, axis=1, count=last - first, bitorder="little")
        return bits.astype(np.float64)

    def counts(self) -> np.ndarray:
        """Return how many models saw each class, int64 (classes,)."""
        counts = np.zeros(self.classes, np.int64)
        for units in unit_blocks(self.classes, 8 * CHUNK, GIGABYTE / 2):
            for first in range(0, len(self), CHUNK):
                models = np.arange(first, min(first + CHUNK, len(self)))
                counts[units] += self.rows(models, units).sum(axis=0).astype(np.int64)
        return counts


@dataclass(frozen=True)
class Outcomes:
    """Columns of outcomes that arrive in chunks.

    Attributes:
        columns: how many.
        chunks: gives an iterator over (models, outcomes): numbers of rows of the masks, int64 (n,),
            and float64 (n, columns).
    """

    columns: int
    chunks: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]

    @classmethod
    def of(cls, values: np.ndarray) -> "Outcomes":
        """Return the columns of a matrix (models, columns) that is held in memory."""

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for first in range(0, len(values), CHUNK):
                models = np.arange(first, min(first + CHUNK, len(values)))
                yield models, values[models]

        return cls(values.shape[1], chunks)


@dataclass(frozen=True)
class Measurements:
    """Masks and outcomes of the models of one (target, mode), in the order of their numbers.

    Attributes:
        models: numbers of the models, int64 (models,).
        groups: which models were drawn together, as complements or as a block of balanced subsets:
            they share a number; int64 (models,).
        masks: of the models.
        targets: float64 (models, target classes + 1): outcomes on each target class, in the order
            of the labels, and on the whole target, which is the last column.
        accuracy: float64 (models, 1), on the whole target; no columns where it is not known.
        examples: outcomes on single target examples; no columns for a scalar outcome.
        design: how the subsets were drawn, as far as the masks tell.
    """

    models: np.ndarray
    groups: np.ndarray
    masks: Masks
    targets: np.ndarray
    accuracy: np.ndarray
    examples: Outcomes
    design: Sampling = "uniform"

    def __len__(self) -> int:
        return len(self.models)

    @property
    def classes(self) -> int:
        """Number of source classes."""
        return self.masks.classes

    @property
    def partners(self) -> np.ndarray:
        """Which models are complements of each other: they share a number; int64 (models,)."""
        if self.design != "balanced":
            return self.groups
        size = block_models(self.classes)
        return self.models // size * size + self.models % (size // 2)

    def details(self, classes: bool, examples: bool) -> Outcomes:
        """Return outcomes on target classes, then those on single examples, as far as wanted."""
        of_classes = self.targets[:, :-1] if classes else self.targets[:, :0]
        if not examples:
            return Outcomes.of(of_classes)

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for models, outcomes in self.examples.chunks():
                yield models, np.hstack([of_classes[models], outcomes])

        return Outcomes(of_classes.shape[1] + self.examples.columns, chunks)

    @property
    def whole(self) -> np.ndarray:
        """Outcomes on the whole target, float64 (models, 1)."""
        return self.targets[:, -1:]

    def take(self, chosen: np.ndarray) -> "Measurements":
        """Return the measurements of some models (indices, int64), in the order given.

        A model may be taken more than once, as a bootstrap does, but not for `examples`.
        """
        place = np.full(len(self), -1)
        place[chosen] = np.arange(len(chosen))

        def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for models, outcomes in self.examples.chunks():
                new = place[models]
                yield new[new >= 0], outcomes[new >= 0]

        return replace(
            self,
            models=self.models[chosen],
            groups=self.groups[chosen],
            masks=Masks(self.masks.packed[chosen], self.classes),
            targets=self.targets[chosen],
            accuracy=self.accuracy[chosen],
            examples=Outcomes(self.examples.columns, chunks),
        )


def read_measurements(
    summary: Path, outcome: Outcome, names: list[str], images: TestImages, memory_gb: float
) -> Measurements:
    """Read what influences on one target are estimated from.

    Only the images that rank count for the target and its classes.

    Args:
        summary: table with `model`, `mask` and the outcome.
        outcome: the column to explain, per example; or a scalar, computed from one.
        names: the source classes.
        images: the target's test images.
        memory_gb: in GB; masks of more than a quarter of it are kept in a file without a name
            beside the summary.

    Raises:
        UserError: the file is damaged or holds too few models; masks or outcomes are not as wide
            as `names` and `images`; an outcome is not finite; a model stands twice; a class is in
            fewer than two subsets, or missing from fewer than two, of the models that are left
            where those without a partner are left out.
    """
    table = open_table(summary)
    if table.metadata.num_rows == 0:
        raise UserError(f"{summary}: holds no models; run the workflow again.")
    shape = (table.metadata.num_rows, -(-len(names) // 8))
    packed = _empty(shape, memory_gb * GIGABYTE / 4, summary.parent)
    column = SCALARS.get(outcome, outcome)
    judged = "is_correct" in table.schema_arrow.names
    columns = list(dict.fromkeys(["model", "mask", column, *(["is_correct"] if judged else [])]))
    numbers, targets, accuracies = [], [], []
    for first, rows in _chunks(table, columns, summary):
        packed[first : first + len(rows)] = _packed(rows["mask"], len(names), summary)
        numbers.append(rows["model"].to_numpy())
        targets.append(_of_target(rows, outcome, images, summary))
        unknown = np.empty((len(rows), 0))
        accuracies.append(_of_target(rows, "accuracy", images, summary) if judged else unknown)
    models = np.concatenate(numbers).astype(np.int64)
    order = np.argsort(models, kind="stable")
    _check_each_once(models[order], summary)

    place = np.empty(len(models), np.int64)
    place[order] = np.arange(len(models))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first, rows in _chunks(table, ["model", column], summary):
            yield place[first : first + len(rows)], _values(rows, column, images, summary)

    if not (order == np.arange(len(order))).all():
        packed = packed[order]
    measured = recognized(
        Measurements(
            models=models[order],
            groups=np.arange(len(models)),
            masks=Masks(packed, len(names)),
            targets=np.concatenate(targets)[order],
            accuracy=np.concatenate(accuracies)[order],
            examples=Outcomes(0 if outcome in SCALARS else len(images.labels), chunks),
        )
    )
    check_both_sides(measured.masks.counts(), len(measured), names)
    return measured


def unit_blocks(classes: int, each: float, memory: float) -> Iterator[slice]:
    """Cut the classes into blocks that take up to `memory` bytes, at `each` bytes a class.

    Blocks start at multiples of 8, as masks are packed.
    """
    size = max(8, int(memory / each) // 8 * 8)
    for first in range(0, classes, size):
        yield slice(first, min(first + size, classes))


def recognized(measured: Measurements) -> Measurements:
    """Tell by their masks which models were drawn together."""
    return _in_blocks(measured) or _in_pairs(measured) or measured


def _in_pairs(measured: Measurements) -> Measurements | None:
    """Return models 2i and 2i+1 as pairs, if the masks of all such are complements.

    A model whose partner failed is left out, so that all pairs are whole.
    """
    pairs = measured.models // 2
    first = np.flatnonzero(pairs[1:] == pairs[:-1])
    if not len(first) or not _are_complements(measured.masks, first, first + 1):
        return None
    paired = replace(measured, groups=pairs, design="complement_pairs")
    whole = np.sort(np.concatenate([first, first + 1]))
    if len(whole) == len(measured):
        return paired
    lonely = np.setdiff1d(measured.models, measured.models[whole])
    log.warning("without models %s, which have no partner", ", ".join(map(str, lonely)))
    return paired.take(whole)


def _in_blocks(measured: Measurements) -> Measurements | None:
    """Return models in blocks of balanced subsets, if they are and all blocks are whole."""
    size = block_models(measured.classes)
    blocks, place = np.divmod(measured.models, size)
    first, second = np.flatnonzero(place < size // 2), np.flatnonzero(place >= size // 2)
    if (np.unique(blocks, return_counts=True)[1] < size).any():
        return None
    if not _are_complements(measured.masks, first, second) or not _are_balanced(measured):
        return None
    return replace(measured, groups=blocks, design="balanced")


def _are_complements(masks: Masks, first: np.ndarray, second: np.ndarray) -> bool:
    """Tell whether each mask of `first` and the one of `second` in its place are complements."""
    bits = np.packbits(np.ones(masks.classes, bool), bitorder="little")
    packed = masks.packed
    return all(((packed[i] ^ packed[j]) == bits).all() for i, j in zip(first, second, strict=True))


def _are_balanced(measured: Measurements) -> bool:
    """Tell whether any two classes are together in equally many subsets, of whole blocks.

    For masks of 1 and -1, *X*, a matrix *XᵀX* is known then. It is compared by its product with
    random whole numbers, which is exact, instead of entry by entry (Freivalds 1977).
    """
    order = smallest_order(measured.classes)
    each = len(measured) // (order - 1)
    chosen = np.random.default_rng(0).integers(0, 2**16, measured.classes).astype(np.float64)
    product = np.zeros(measured.classes)
    for first in range(0, len(measured), CHUNK):
        signs = 2 * measured.masks.rows(np.arange(first, min(first + CHUNK, len(measured)))) - 1
        product += signs.T @ (signs @ chosen)
    return bool((product == each * (order * chosen - chosen.sum())).all())


def _empty(shape: tuple[int, int], memory: float, folder: Path) -> np.ndarray:
    if shape[0] * shape[1] <= memory:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def _chunks(
    table: pq.ParquetFile, columns: list[str], path: Path
) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of a table, some row groups at a time, and the number of the first of them."""
    sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    first, waiting = 0, list[int]()
    for group in range(len(sizes)):
        waiting.append(group)
        last = group == len(sizes) - 1
        count = sum(sizes[each] for each in waiting)
        if count and (last or count + sizes[group + 1] > CHUNK):
            with damage_named(path):
                yield first, table.read_row_groups(waiting, columns)
            first, waiting = first + count, []


def _packed(column: pa.ChunkedArray, classes: int, path: Path) -> np.ndarray:
    masks = [mask or b"" for mask in column.to_pylist()]
    if {len(mask) for mask in masks} != {-(-classes // 8)}:
        raise UserError(
            f"{path}: masks of {8 * len(masks[0])} bits, but the source data set has {classes} "
            f"classes; summarize again."
        )
    packed = np.frombuffer(b"".join(masks), np.uint8).reshape(len(masks), -1)
    if classes % 8 and (packed[:, -1] >> classes % 8).any():
        raise UserError(
            f"{path}: masks have more classes than the {classes} of the source data set; "
            f"summarize again."
        )
    return packed


def _values(rows: pa.Table, column: str, images: TestImages, path: Path) -> np.ndarray:
    """Return outcomes on all test images as float64 (models, images), checked."""
    values = matrix(rows[column]).astype(np.float64)
    if values.shape[1] != len(images.labels):
        raise UserError(
            f"{path}: outcomes on {values.shape[1]} test images, but the target has "
            f"{len(images.labels)}; transfer again."
        )
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{path}: {column} of model {rows['model'][int(np.argmin(finite))]} is not finite; "
            f"delete the file and summarize again, which names the shard if that is to blame."
        )
    return values


def _of_target(rows: pa.Table, outcome: Outcome, images: TestImages, path: Path) -> np.ndarray:
    """Return the outcome on each target class and on the whole target; a scalar on the whole only.

    Returns:
        float64 (models, target classes + 1 or 1).
    """
    values = _values(rows, SCALARS.get(outcome, outcome), images, path)
    if outcome == "auroc":
        if images.labels.max() != 1:
            raise UserError(
                f"{path}: auroc is not defined, as the target has not two classes; choose another "
                f"influence.outcome."
            )
        ranking, labels = images.ranking, images.labels[images.ranking]
        return np.array([[area_of_margins(row[ranking], labels)] for row in values])
    means = images.means(values, images.ranking)
    return means[:, -1:] if outcome == "accuracy" else means


def _check_each_once(models: np.ndarray, path: Path) -> None:
    twice = models[1:][models[1:] == models[:-1]]
    if len(twice):
        raise UserError(f"{path}: model {twice[0]} stands twice; summarize again.")
