"""Tables of paths and labels."""

import difflib
import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from transfer_influence.config.dataset import TableDataset
from transfer_influence.datasets.images import Images
from transfer_influence.datasets.kinds.parts import Parts
from transfer_influence.errors import UserError

log = logging.getLogger(__name__)

NEAREST = 20  # labels to name where the one asked for is not there

_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    # As text, or pandas would take a class called "NA" for an empty cell.
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t"),
    ".parquet": pd.read_parquet,
}


class Table:
    """A table with one row an image; images in the order of the rows."""

    def parts(self, settings: TableDataset, origin: str) -> Parts:
        """See `Kind`."""
        tables = _parts(settings, origin)
        cells = [_label_cells(table, path, settings, origin) for path, table in tables]
        classes, labels = _labels(cells, settings, origin)
        images = [
            _images(table, path, of_part, settings, origin)
            for (path, table), of_part in zip(tables, labels, strict=True)
        ]
        return Parts(classes, images[0], images[1] if len(images) == 2 else None)


def _parts(settings: TableDataset, origin: str) -> list[tuple[Path, pd.DataFrame]]:
    """Return the rows of one part or of two, and the table they come from."""
    table = _read(settings.train, "train", origin)
    if settings.test is not None:
        return [(settings.train, table), (settings.test, _read(settings.test, "test", origin))]
    if settings.part_column is not None:
        column = _column(table, settings.part_column, "part_column", settings.train, origin)
        wanted = (settings.train_parts, settings.test_parts)
        return _told_apart(table, column.astype(str).str.strip(), wanted, settings.train, origin)
    if settings.train_list is not None and settings.test_list is not None:
        column = _column(table, settings.path_column, "path_column", settings.train, origin)
        cells = column.astype(str)
        listed = [
            _listed(path, key, set(cells), origin)
            for key, path in (
                ("train_list", settings.train_list),
                ("test_list", settings.test_list),
            )
        ]
        twice = sorted(listed[0] & listed[1])
        if twice:
            raise UserError(
                f"{origin}: {twice[0]} stands in both {settings.train_list} and "
                f"{settings.test_list}; remove it from one."
            )
        return _told_apart(table, cells, listed, settings.train, origin)
    return [(settings.train, table)]


def _told_apart(
    table: pd.DataFrame,
    cells: pd.Series,
    wanted: Sequence[Collection[str]],
    path: Path,
    origin: str,
) -> list[tuple[Path, pd.DataFrame]]:
    """Return the rows whose cell is wanted in each part, and tell of those in no part."""
    belongs = [cells.isin(list(names)) for names in wanted]
    left_out = cells[~(belongs[0] | belongs[1])]
    if len(left_out):
        log.warning(
            "%s: %s: %d of %d rows are in neither part and left out, such as %r",
            origin,
            path,
            len(left_out),
            len(table),
            left_out.iloc[0],
        )
    return [(path, table[of_part]) for of_part in belongs]


def _read(path: Path, key: str, origin: str) -> pd.DataFrame:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{origin}: {key}: {path} is no table that can be read; give one of "
            f"{', '.join(_READERS)}."
        )
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(
            f"{origin}: {key}: no file {path}; correct the path (relative paths start at the "
            "working folder)."
        ) from None
    except Exception as error:  # readers fail in many ways
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{origin}: {key}: {path} cannot be read as a table ({reason}); mend the file."
        ) from None


def _listed(path: Path, key: str, known: set[str], origin: str) -> set[str]:
    """Return the paths in a text file, which have to be in the table."""
    try:
        names = {line.strip() for line in path.read_text().splitlines()} - {""}
    except OSError:
        raise UserError(f"{origin}: {key}: no file {path}; correct the path.") from None
    unknown = sorted(names - known)
    if unknown:
        raise UserError(
            f"{origin}: {key}: {path} names {unknown[0]} and {len(unknown) - 1} more that are not "
            "in the table; correct the list or `path_column`."
        )
    return names


def _column(table: pd.DataFrame, name: str, key: str, path: Path, origin: str) -> pd.Series:
    if name not in table.columns:
        raise UserError(
            f"{origin}: {key}: {path} has no column {name!r}; use one of "
            f"{', '.join(repr(str(known)) for known in table.columns)}."
        )
    return table[name]


# Labels


def _label_cells(table: pd.DataFrame, path: Path, settings: TableDataset, origin: str) -> pd.Series:
    """Return the column that holds the labels, whose cells must not be empty."""
    if settings.label_column is None and settings.positive is not None:
        column, key = settings.positive, "positive"
    else:
        column, key = settings.label_column or "label", "label_column"
    cells = _column(table, column, key, path, origin)
    empty = np.flatnonzero(cells.isna() | (cells.astype(str).str.strip() == ""))
    if len(empty) and settings.delimiter is None:
        paths = _column(table, settings.path_column, "path_column", path, origin)
        raise UserError(
            f"{origin}: {path}: column {column!r} is empty for {paths.iloc[empty[0]]}; fill it in "
            "or remove the row."
        )
    return cells


def _labels(
    parts: list[pd.Series], settings: TableDataset, origin: str
) -> tuple[list[str], list[np.ndarray]]:
    """Return class names, and for each part int64 (N,) labels."""
    if settings.positive is not None:
        classes = [f"no {settings.positive}", settings.positive]
        labels = [_has_positive(cells, settings, origin) for cells in parts]
        if settings.label_column is not None and not any(part.any() for part in labels):
            raise UserError(
                f"{origin}: positive: no image has the label {settings.positive!r}; use one of "
                f"{_nearest(settings.positive, parts, settings.delimiter)}."
            )
        return classes, labels
    texts = [cells.astype(str).str.strip() for cells in parts]
    everything = pd.concat(texts)
    if everything.map(lambda text: re.fullmatch(r"-?\d{1,18}(\.0)?", text) is not None).all():
        numbers = [text.str.removesuffix(".0").astype(np.int64).to_numpy() for text in texts]
        largest = max(int(part.max(initial=-1)) for part in numbers)
        # More classes than images means gaps in the labels, which are refused when checked.
        counted = [str(label) for label in range(min(largest + 1, len(everything)))]
        return counted if settings.leave_out else settings.classes or counted, numbers
    classes = sorted(everything.unique())
    if settings.classes:
        classes = settings.classes + [name for name in classes if name in settings.leave_out]
    position = {name: label for label, name in enumerate(classes)}
    for text in texts:
        outside = np.flatnonzero(~text.isin(classes))
        if len(outside):
            raise UserError(
                f"{origin}: label_column: {text.iloc[outside[0]]!r} ({len(outside)} images) is not "
                "one of `classes`; correct the label, or add it to `classes`."
            )
    return classes, [text.map(position).to_numpy(np.int64) for text in texts]


def _has_positive(cells: pd.Series, settings: TableDataset, origin: str) -> np.ndarray:
    """Return 1 for the images that have the positive label and 0 for the others, int64 (N,)."""
    if settings.label_column is not None:
        held = [settings.positive in _parted(cell, settings.delimiter) for cell in cells]
        return np.array(held, np.int64)
    meanings = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
    texts = cells.astype(str).str.strip()
    wrong = np.flatnonzero(~texts.isin(list(meanings)))
    if len(wrong):
        raise UserError(
            f"{origin}: positive: column {settings.positive!r} holds {texts.iloc[wrong[0]]!r}; "
            "give 0 or 1, or name the column that holds the labels in `label_column`."
        )
    return texts.map(meanings).to_numpy(np.int64)


def _parted(cell: object, delimiter: str | None) -> list[str]:
    """Return the labels in a cell."""
    labels = [str(cell)] if delimiter is None else str(cell).split(delimiter)
    return [label.strip() for label in labels]


def _nearest(wanted: str, parts: list[pd.Series], delimiter: str | None) -> str:
    """Return the labels that occur, those like the wanted one first."""
    held = {label for cells in parts for cell in cells for label in _parted(cell, delimiter)} - {""}
    near = difflib.get_close_matches(wanted, sorted(held), n=NEAREST, cutoff=0)
    return ", ".join(map(repr, near)) + ", …" * (len(held) > NEAREST)


# Images


def _images(
    table: pd.DataFrame, path: Path, labels: np.ndarray, settings: TableDataset, origin: str
) -> Images:
    names = _column(table, settings.path_column, "path_column", path, origin).astype(str).tolist()
    places = _places(names, settings, origin)
    return Images(labels, lambda index: Image.open(places[index]), lambda index: str(places[index]))


def _places(names: list[str], settings: TableDataset, origin: str) -> list[Path]:
    """Return where each image is; one that is in none of several folders is found missing later."""
    if "*" not in str(settings.images):
        return [settings.images / name for name in names]
    fixed = dict(settings.places)["images"]
    folders = sorted(fixed.glob(str(settings.images.relative_to(fixed))))
    if not folders:
        raise UserError(
            f"{origin}: images: no folder fits {settings.images}; correct the path (relative paths "
            "start at the working folder)."
        )
    # Each folder is read once: asking 12 folders for each of 100,000 images takes minutes.
    inside = {str(Path(name).parent) for name in names}
    found = {
        str(Path(below, entry.name)): entry
        for folder in reversed(folders)
        for below in inside
        if (folder / below).is_dir()
        for entry in (folder / below).iterdir()
    }
    return [found.get(str(Path(name)), folders[0] / name) for name in names]
