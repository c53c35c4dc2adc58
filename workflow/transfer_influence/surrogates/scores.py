"""What each surrogate says of the source classes, as a ranking."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file

from transfer_influence.config.study import Method
from transfer_influence.errors import UserError
from transfer_influence.influence.ranking import RANKED, ranked
from transfer_influence.outcomes.tables import write_table
from transfer_influence.subsets import read_units
from transfer_influence.surrogates.mapping import feature_mapping, label_mapping
from transfer_influence.surrogates.similarity import (
    feature_similarity,
    mean_features,
    nearest_neighbours,
)
from transfer_influence.surrogates.trak import trak
from transfer_influence.surrogates.transferability import (
    Score,
    h_score,
    leep,
    logme,
    without_each_class,
)


@dataclass(frozen=True)
class View:
    """How one full model sees the training images of the source and of a target.

    Attributes:
        source: by name, arrays with a row a source image; see `embedding.embed`.
        source_labels: int64 (N,).
        classes: how many the source has.
        target: by name, arrays with a row a target image.
        target_labels: int64 (n,).
    """

    source: dict[str, np.ndarray]
    source_labels: np.ndarray
    classes: int
    target: dict[str, np.ndarray]
    target_labels: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """Mean features of the source classes, float64 (classes, d)."""
        return mean_features(self.source["features"], self.source_labels, self.classes)


def _losing(score: Score) -> Callable[[View], np.ndarray]:
    return lambda view: without_each_class(score, view.target["logits"], view.target_labels)


METHODS: dict[Method, Callable[[View], np.ndarray]] = {
    "feature_similarity": lambda view: feature_similarity(view.means, view.target["features"]),
    "nearest_neighbours": lambda view: nearest_neighbours(
        view.source["features"], view.source_labels, view.classes, view.target["features"]
    ),
    "label_mapping": lambda view: label_mapping(view.target["logits"]),
    "feature_mapping": lambda view: feature_mapping(view.means, view.target["features"]),
    "leep": _losing(leep),
    "logme": _losing(logme),
    "h_score": _losing(h_score),
    "trak": lambda view: trak(
        view.source["gradients"],
        view.source_labels,
        view.classes,
        view.target["gradients"],
    ),
}


def score_classes(method: Method, views: list[View]) -> np.ndarray:
    """Return the score of each source class, float64 (classes,): the mean over full models.

    Raises:
        UserError: a score is not finite.
    """
    scores = np.mean([METHODS[method](view) for view in views], axis=0)
    if not np.isfinite(scores).all():
        first = int(np.argmin(np.isfinite(scores)))
        raise UserError(
            f"surrogates.methods: {method} gives class {first} of the source the score "
            f"{scores[first]}; leave {method} out."
        )
    return scores


def listed_scores(path: Path, names: list[str]) -> np.ndarray:
    """Return scores that rank classes as a list does, float64 (classes,).

    The last of n listed classes has 1, the first n; those that are not listed have 0.

    Raises:
        UserError: see `read_units`.
    """
    listed = read_units(path, names)
    scores = np.zeros(len(names))
    scores[listed] = np.arange(len(listed), 0, -1)
    return scores


def read_views(
    source: Path,
    target: Path,
    source_labels: np.ndarray,
    target_labels: np.ndarray,
    classes: int,
) -> list[View]:
    """Read how full models see a source and a target, one view a model.

    Args:
        source: safetensors file of the source.
        target: of the target, seen by the same models.
        source_labels: of the source's training images, int64 (N,).
        target_labels: of the target's training images, int64 (n,).
        classes: how many the source has.

    Raises:
        UserError: a file is missing or damaged.
    """
    of_source, of_target = read_embedding(source), read_embedding(target)
    return [
        View(of_source[number], source_labels, classes, of_target[number], target_labels)
        for number in of_source
    ]


def read_embedding(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Read what `embedding.embed` found: arrays by name, by the number of the model.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({error}); delete it and run again.") from None
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        number, name = key.split("/")
        found.setdefault(number, {})[name] = array
    return found


def write_scores(scores: np.ndarray, names: list[str], path: Path, provenance: str) -> None:
    """Write a ranking: the columns of that of the influences, with scores in their place.

    `influence` holds the score, in units of its own; what tells how sure an influence is, is null.
    """
    nothing = pa.nulls(len(names), pa.float64())
    columns = dict.fromkeys(RANKED, nothing) | {
        "unit": pa.array(range(len(names)), pa.int32()),
        "name": pa.array(names),
        "influence": pa.array(scores),
        "significant": pa.nulls(len(names), pa.bool_()),
    }
    write_table(ranked(pa.table(columns)), path, provenance)
