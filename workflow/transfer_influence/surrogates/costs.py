"""What a study and its surrogates have taken, by what their results say of themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_influence.outcomes.tables import open_table
from transfer_influence.provenance import read_provenance

HOUR = 3600.0


@dataclass(frozen=True)
class Costs:
    """Hours of wall time; NaN where a result does not say it.

    Attributes:
        study: of all source models and of their transfers to one target in one mode.
        looking: to train models on all classes, as many as are used, and to look at the images.
        scoring: of each surrogate, by its name.
        lists: surrogates that take no models.
        device: that the models were trained on.
    """

    study: float
    looking: float
    scoring: dict[str, float]
    lists: Sequence[str]
    device: str

    def of(self, surrogate: str) -> float:
        """Return what a surrogate takes by itself; 0 for a list."""
        return 0.0 if surrogate in self.lists else self.looking + self.scoring[surrogate]


def read_costs(
    sources: Sequence[Path],
    transfers: Sequence[Path],
    full: Sequence[Path],
    checkpoints: int,
    views: Sequence[Path],
    scores: dict[str, Path],
    lists: Sequence[str],
) -> Costs:
    """Read what was taken.

    Args:
        sources: tables of the source models.
        transfers: tables of their transfers.
        full: tables of models trained on all classes.
        checkpoints: how many of these are used.
        views: files of what these see.
        scores: tables of the surrogates, by name.
        lists: names of those that are lists.

    Raises:
        UserError: a file is missing or damaged.
    """
    models = sum(open_table(path).metadata.num_rows for path in full)
    share = min(1.0, checkpoints / models) if models else 0.0
    return Costs(
        study=hours(sources) + hours(transfers),
        looking=share * hours(full) + hours(views),
        scoring={name: hours([path]) for name, path in scores.items()},
        lists=lists,
        device=read_provenance(sources[0])["device"],
    )


def hours(results: Sequence[Path]) -> float:
    """Return the wall time of the jobs that made some results, in hours."""
    told = [read_provenance(path).get("seconds") for path in results]
    return sum(np.nan if seconds is None else seconds for seconds in told) / HOUR
