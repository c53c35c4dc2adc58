"""Which units of the source data, classes or examples, a source model sees.

A *mask* is a bool array (units,), true where the unit is kept. On disk it is packed, one bit a
unit, lowest bit first.
"""

import difflib
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_influence.config.lists import list_entries
from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import Study, Subset, Unit, shard_models
from transfer_influence.errors import UserError
from transfer_influence.hadamard import matrix_row, smallest_order
from transfer_influence.seeds import Stage, TrainingSeeds, stream

LEAST_KEPT = 2  # units that a model needs to learn anything
LEAST_SIDE = 2  # models with a unit, and without it, that its influence needs
LEAST_GROUPS = 4  # of models drawn together, from which on lasso can hold out some
LEAST_BLOCKS = 10  # of balanced subsets, that a bootstrap can draw from
MOST_COMPARED = 10_000  # names to look for one that was meant; a second's work
STAMPED = 2**16  # bytes of a mask


@dataclass(frozen=True)
class SourceModel:
    """A source model: its number, the units it sees, and its seeds if it is trained here."""

    model: int
    mask: np.ndarray  # bool (units,)
    seeds: TrainingSeeds | None


def source_models(
    stage: SourceStage, models: Iterable[int], names: Sequence[str]
) -> list[SourceModel]:
    """Return source models by their numbers, each with its subset of the units called `names`.

    Raises:
        UserError: see `draw_mask` and `listed_mask`.
    """
    seeds = {
        model: TrainingSeeds.from_stream(stream(stage.seed, Stage.SOURCE, model))
        for model in models
    }
    if stage.subset.listed:
        mask = listed_mask(stage.subset, names)
        return [SourceModel(model, mask, each) for model, each in seeds.items()]
    return [
        SourceModel(model, draw_mask(stage.seed, model, len(names), stage.subset), each)
        for model, each in seeds.items()
    ]


def draw_mask(study_seed: int, model: int, units: int, subset: Subset) -> np.ndarray:
    """Draw the mask of one source model, as `subset.sampling` says.

    `uniform`: the units of the subset, without replacement. `complement_pairs`: the even model of
    a pair is drawn so, and the odd one sees the rest. `balanced`: see `_balanced_mask`.

    Raises:
        UserError: the subset leaves nothing to compare, as it holds none or all of the units; or
            it has to be a half, and is none.
    """
    size = subset.size(units)
    if not 1 <= size < units:
        raise UserError(
            f"source.subset: {size} of {units} units; choose a subset with at least 1 unit and "
            f"fewer than {units}."
        )
    if subset.sampling != "uniform" and size != units // 2:
        raise UserError(
            f"source.subset: {subset.sampling} are halves, but {size} of {units} units is none; "
            f"set `fraction` to 0.5."
        )
    seed = study_seed if subset.seed is None else subset.seed
    if subset.sampling == "balanced":
        return _balanced_mask(seed, model, units)
    second = subset.sampling == "complement_pairs" and model % 2 == 1
    chosen = np.random.default_rng(stream(seed, Stage.SUBSET, model - second)).permutation(units)
    mask = np.full(units, second)
    mask[chosen[:size]] = not second
    return mask


def block_models(units: int) -> int:
    """Return how many models are a block of balanced subsets.

    They are the rows of a Hadamard matrix without the first one, which is constant, and their
    complements.
    """
    return 2 * (smallest_order(units) - 1)


def balanced_spread(units: int) -> float:
    """Return the standard deviation of the size of balanced subsets: 0 if no column is spare.

    A size is how many of `units` columns out of all are in one half of them (hypergeometric).
    """
    order = smallest_order(units)
    return math.sqrt(units / 4 * (order - units) / (order - 1))


def _balanced_mask(seed: int, model: int, units: int) -> np.ndarray:
    """Return the mask of one model of a block, see `block_models`.

    Rows are orthogonal, so in a block each unit is in half of the subsets, and any two units are
    together in equally many (Plackett & Burman 1946; with the complements, a "foldover"). Each
    block has rows in random order and with random signs, and units in random columns; the second
    half of its models are the complements of the first, in the same order. Where no matrix has as
    many columns as there are units, some columns stay without one, so sizes vary a little.
    """
    order = smallest_order(units)
    block, place = divmod(model, block_models(units))
    rng = np.random.default_rng(stream(seed, Stage.SUBSET, block, "balanced"))
    rows, kept = rng.permutation(order - 1) + 1, rng.choice((-1, 1), order - 1)
    columns = rng.permutation(order)[:units]
    complement, row = divmod(place, order - 1)
    entries = matrix_row(order, rows[row])[columns]
    return entries == (-kept[row] if complement else kept[row])


def listed_mask(subset: Subset, names: Sequence[str]) -> np.ndarray:
    """Return the mask (units,) of a subset that is listed in a file.

    Raises:
        UserError: see `read_units`; or fewer than two units are kept.
    """
    assert subset.listed is not None
    mask = np.full(len(names), subset.keep is None)
    mask[read_units(subset.listed, names)] = subset.keep is not None
    if mask.sum() < LEAST_KEPT:
        raise UserError(
            f"{subset.listed}: leaves {mask.sum()} of {len(names)} units to train on; keep at "
            f"least {LEAST_KEPT}."
        )
    return mask


def open_masks(path: Path, models: int, units: int | None = None) -> np.ndarray:
    """Open the masks of existing models: (models, units), on disk until rows are read.

    Eight units a byte, lowest bit first, where the file has them packed.

    Args:
        path: `.npy` file.
        models: how many models it must have rows for.
        units: how many columns it must have; None if that is not known yet.

    Raises:
        UserError: the file is missing, unreadable, or of another shape.
    """
    try:
        masks = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; correct source.masks.") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path}: not readable as .npy ({error}); write it by numpy.save."
        ) from None
    if not isinstance(masks, np.ndarray) or masks.ndim != 2 or masks.dtype.kind not in "biuf":
        raise UserError(
            f"{path}: not a table of numbers; write one row a model and one column a unit."
        )
    rows, width = masks.shape
    if rows < models:
        raise UserError(
            f"{path}: masks of {rows} models, but {models} are asked for; lower `models`."
        )
    if units is not None and width != units and not is_packed(masks, units):
        raise UserError(
            f"{path}: masks of {width} units, but the source data set has {units}; correct "
            f"source.masks, source.dataset or source.subset.unit."
        )
    return masks


def is_packed(masks: np.ndarray, units: int) -> bool:
    """Tell whether masks from a file have eight of so many units a byte."""
    return masks.dtype == np.uint8 and masks.shape[1] == -(-units // 8) != units


def masks_stamp(path: Path, models: Sequence[int]) -> str:
    """Digest the masks of existing models, as far as their first 65,536 bytes tell.

    Raises:
        UserError: see `open_masks`.
    """
    rows = open_masks(path, max(models) + 1)[models[0] : models[-1] + 1, :STAMPED]
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def bank_of(study: Study, shard: str) -> tuple[int, str]:
    """Return what of a bank of existing models decides a shard.

    Returns:
        How many models the bank has up to the end of the shard, where the last shard may be a
        shorter one; and what tells that checkpoints or masks of the shard have changed.

    Raises:
        UserError: see `open_masks`.
    """
    source = study.source
    assert source.masks is not None
    models = [model for model in shard_models(shard) if model < study.models]
    files = [source.checkpoint(model).stat() for model in models]
    stamps = " ".join(f"{file.st_size}:{file.st_mtime_ns}" for file in files)
    digest = hashlib.sha256(stamps.encode()).hexdigest()[:16]
    return models[-1] + 1, f"files:{digest} masks:{masks_stamp(source.masks, models)}"


def imported_models(path: Path, models: Sequence[int], units: int) -> list[SourceModel]:
    """Return existing source models by their numbers, with their masks of `units` units.

    Raises:
        UserError: see `open_masks`; or a mask has other entries than 0 and 1, or keeps fewer than
            two units.
    """
    masks = open_masks(path, max(models) + 1, units)
    packed = is_packed(masks, units)
    found = []
    for model in models:
        row = unpack([masks[model].tobytes()], units)[0] if packed else np.asarray(masks[model])
        if not ((row == 0) | (row == 1)).all():
            raise UserError(f"{path}: row {model} has entries other than 0 and 1; correct it.")
        mask = row.astype(bool)
        if mask.sum() < LEAST_KEPT:
            raise UserError(
                f"{path}: row {model} keeps {mask.sum()} units, but a model needs at least "
                f"{LEAST_KEPT}; correct it."
            )
        found.append(SourceModel(model, mask, None))
    return found


def read_units(path: Path, names: Sequence[str]) -> np.ndarray:
    """Read a list of units.

    Args:
        path: `.txt` with one unit a line; `.csv` whose column `name` or `unit` counts, or the first
            one of a table without such a header; or `.npy`. Entries are names if all of them are,
            else indices, counted from 0.
        names: of all units, in order.

    Returns:
        int64 (listed units,), in the order of the file.

    Raises:
        UserError: the file is missing, unreadable or empty, or an entry is no unit or listed twice.
    """
    entries = list_entries(path)
    index = {name: number for number, name in enumerate(names)}
    if not set(entries) <= set(index) and all(entry.isdecimal() for entry in entries):
        index = {str(number): number for number in range(len(names))}
    wrong = next((entry for entry in entries if entry not in index), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, names, n=1) if len(names) <= MOST_COMPARED else []
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"{path}: {wrong!r} is neither the name of one of the {len(names)} units nor a number "
            f"from 0 to {len(names) - 1}{meant}; correct it."
        )
    units = np.array([index[entry] for entry in entries], np.int64)
    listed, counts = np.unique(units, return_counts=True)
    if counts.max() > 1:
        twice = names[listed[counts.argmax()]]
        raise UserError(f"{path}: {twice!r} is listed twice; remove one.")
    return units


def check_both_sides(counts: np.ndarray, models: int, names: Sequence[str]) -> None:
    """Refuse units without a difference or without a standard error.

    Args:
        counts: int64 (units,), how many models saw each unit.
        models: how many models there are.
        names: of the units.

    Raises:
        UserError: a unit is in fewer than two subsets, or missing from fewer than two.
    """
    wrong = np.flatnonzero((counts < LEAST_SIDE) | (counts > models - LEAST_SIDE))
    if len(wrong):
        raise UserError(
            f"{names[wrong[0]]!r} is in the subsets of {counts[wrong[0]]} of {models} models, but "
            f"both sides need at least {LEAST_SIDE}; raise `models`, or mend the masks."
        )


def pack(mask: np.ndarray) -> bytes:
    """Pack a mask, one bit a unit."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack(packed: list[bytes], units: int) -> np.ndarray:
    """Unpack masks, one row each: bool (len(packed), units)."""
    rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), -1)
    return np.unpackbits(rows, axis=1, count=units, bitorder="little").astype(bool)


def training_examples(mask: np.ndarray, unit: Unit, labels: np.ndarray) -> np.ndarray:
    """Return the indices (int64) of the training examples, labelled `labels`, that a mask keeps."""
    return np.flatnonzero(mask if unit == "example" else mask[labels])


def own_test_examples(mask: np.ndarray, unit: Unit, labels: np.ndarray) -> np.ndarray:
    """Return the indices (int64) of the test examples of the classes that a mask keeps.

    All of them where a mask keeps single training examples.
    """
    return np.arange(len(labels)) if unit == "example" else np.flatnonzero(mask[labels])
