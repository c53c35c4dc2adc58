"""Leakage and misleading examples: pairs of a source and a target image of extreme influence."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transfer_influence.applications.blocks import blocks
from transfer_influence.applications.chance import Chance
from transfer_influence.applications.pictures import NEAR, hamming_distance, picture_hashes
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.influence.intervals import significant
from transfer_influence.outcomes.tables import read_table

MOST_PAIRS = 200  # of each sign


def list_pairs(influences: Path, source: Path, target: Path, proves: np.ndarray) -> pa.Table:
    """Return the 200 most helpful and the 200 most harmful pairs of a source and a target image.

    Columns: `unit`, `unit_name`, `unit_class` of the source's training image; `example` (index in
    the target's test split), `name`, `class` of the target's test image, and `proves`, whether it
    is one of those that prove the ranking; `influence`, `standard_error`; `q_value` among all
    influences on single examples, two-sided, and `beyond_chance`, whether that is at most 5 %, null
    where it is not known; `distance`, in how many of 64 bits their perceptual hashes differ;
    `same_pixels`, whether the images were equal before they were stored; `near_duplicate`, whether
    they were, or the distance is at most 4; and `conflicting`, whether near-duplicates have classes
    of different names, null where one of these is no class of the other data set. Most helpful
    first. No rows where the influences on single examples are left out, see
    `influence.largest_table_gb`.

    Args:
        influences: table of influences of source examples.
        source: folder of the converted source data set.
        target: folder of the converted target data set.
        proves: whether a test image proves the ranking, bool (examples,), see `TestImages`.

    Raises:
        UserError: a file is missing or damaged.
    """
    unit, example, influence, error, freedom = extreme_pairs(influences, MOST_PAIRS)
    q_values = Chance.of(influences, "example", side=0).q_values(influence, error, freedom)
    sources = _images(source, "train", unit)
    targets = _images(target, "test", example)
    distance = hamming_distance(
        picture_hashes(source / "train.beton", unit), picture_hashes(target / "test.beton", example)
    )
    same = pc.equal(sources["digest"], targets["digest"])
    near = pc.or_(same, pa.array(distance <= NEAR))
    return pa.table(
        {
            "unit": unit.astype(np.int32),
            "unit_name": sources["name"],
            "unit_class": sources["class"],
            "example": example.astype(np.int32),
            "name": targets["name"],
            "class": targets["class"],
            "proves": proves[example],
            "influence": influence,
            "standard_error": pa.array(error, from_pandas=True),
            "q_value": pa.array(q_values, from_pandas=True),
            "beyond_chance": significant(q_values),
            "distance": distance,
            "same_pixels": same,
            "near_duplicate": near,
            "conflicting": _conflicting(source, target, sources, targets, near),
        }
    )


def extreme_pairs(influences: Path, count: int) -> tuple[np.ndarray, ...]:
    """Find the pairs with the most positive and the most negative influences.

    Memory holds a row group of influences and the pairs found so far. Of equal ones, the first are
    kept.

    Returns:
        Source unit and target example (int64), influence and standard error (float32), and degrees
        of freedom (float64) of at most `count` helpful pairs and `count` harmful ones, the most
        helpful first.
    """
    none = (*np.empty((2, 0), np.int64), *np.empty((2, 0), np.float32), np.empty(0))
    sides: dict[int, tuple[np.ndarray, ...]] = {1: none, -1: none}
    for block in blocks(influences, "example"):
        for sign, found in sides.items():
            least = sign * found[2][-1] if len(found[2]) == count else 0.0
            row, column = np.nonzero(sign * block.influence > least)
            at = row, column
            size = block.influence[at], block.standard_error[at]
            new = block.units[row], column, *size, block.freedom[row]
            both = [np.concatenate(parts) for parts in zip(found, new, strict=True)]
            order = np.argsort(-sign * both[2], kind="stable")[:count]
            sides[sign] = tuple(part[order] for part in both)
    helpful, harmful = sides[1], sides[-1]
    return tuple(np.concatenate([a, b[::-1]]) for a, b in zip(helpful, harmful, strict=True))


def _images(folder: Path, split: str, chosen: np.ndarray) -> pa.Table:
    """Return `name`, `class` and `digest` of some images of a converted data set."""
    rows = read_table(folder / f"{split}.examples.parquet", ["name", "label", "digest"])
    rows = rows.take(pa.array(chosen))
    classes = pa.array(read_sidecar(folder / "dataset.json").classes)
    return rows.append_column("class", classes.take(rows["label"].combine_chunks()))


def _conflicting(
    source: Path, target: Path, sources: pa.Table, targets: pa.Table, near: pa.ChunkedArray
) -> pa.ChunkedArray:
    known = [
        pc.is_in(images["class"], pa.array(read_sidecar(folder / "dataset.json").classes))
        for images, folder in ((sources, target), (targets, source))
    ]
    differ = pc.and_(near, pc.not_equal(sources["class"], targets["class"]))
    return pc.if_else(pc.and_(*known), differ, pa.scalar(None, pa.bool_()))
