"""Which source units help, and which hurt."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transfer_influence.config.study import PLURAL, Outcome, Unit
from transfer_influence.figures.style import (
    BLACK,
    BLUE,
    OUTCOMES,
    VERMILION,
    WIDTH,
    set_title,
    short,
    styled,
)
from transfer_influence.figures.tables import MOST_ROWS, read_rows

MOST_BARS = 40
ACCURACIES = ("accuracy", "is_correct")  # outcomes that need no second panel


def influence_table(ranking: Path) -> pd.DataFrame:
    """Return the ranking, best first.

    Of more than 10,000 units, the first 5,000 and the last 5,000: a report is to be opened.
    Columns: `rank`, `unit`, `name`, `influence`, `standard_error`, `low`, `high`, `q_value`,
    `significant`, and by accuracy `accuracy_influence`, `accuracy_low`, `accuracy_high`,
    `accuracy_rank`.
    """
    columns = ["rank", "unit", "name", "influence", "standard_error"]
    columns += ["low", "high", "q_value", "significant"]
    columns += ["accuracy_influence", "accuracy_low", "accuracy_high", "accuracy_rank"]
    rows = read_rows(ranking, columns).sort_values("rank", ignore_index=True)
    if len(rows) > MOST_ROWS:
        rows = pd.concat([rows[: MOST_ROWS // 2], rows[-MOST_ROWS // 2 :]], ignore_index=True)
    return rows


@styled
def influence_bars(
    ranking: Path,
    outcome: Outcome,
    target: str,
    unit: Unit = "class",
    one_size: bool = False,
) -> Figure:
    """Draw the influence of each source unit, its 95 % interval if known, most helpful on top.

    Beside the outcome that ranks, the influence on the accuracy is drawn, in percentage points. Of
    more than 40 units, the 20 most helpful and the 20 most harmful are drawn. Where all subsets
    have one size, an influence says no more than that a unit does better or worse than the average.
    """
    rows = influence_table(ranking)
    hidden = max(0, rows["rank"].max() - MOST_BARS)
    half = MOST_BARS // 2
    rows["place"] = np.arange(len(rows))
    if hidden:
        rows = pd.concat([rows[:half], rows[-half:].assign(place=np.arange(half) + half + 1)])
    figure = Figure(figsize=(WIDTH, 1.6 + 0.19 * len(rows)))
    beside = outcome not in ACCURACIES and bool(rows["accuracy_influence"].notna().any())
    better, worse = (
        (f"does more than the average {unit}", f"does less than the average {unit}")
        if one_size
        else (
            f"helpful: models with the {unit} do better",
            f"harmful: models with the {unit} do worse",
        )
    )
    first, *others = figure.subplots(1, 1 + beside, sharey=True, squeeze=False)[0]
    _bars(first, rows["influence"], rows["low"], rows["high"], rows["place"], (better, worse))
    interval = "\nwith 95 % interval" if rows["low"].notna().any() else ""
    first.set_xlabel(f"influence on the {OUTCOMES[outcome]}{interval}")
    for axes in others:
        points = 100 * rows[["accuracy_influence", "accuracy_low", "accuracy_high"]]
        influence, low, high = (points[name] for name in points)
        _bars(axes, influence, low, high, rows["place"], (better, worse))
        axes.set_xlabel(f"influence on the accuracy, in points{interval}, does not rank")
    for axes in (first, *others):
        if hidden:
            _gap(axes, half, f"{hidden} more {unit if hidden == 1 else PLURAL[unit]} in between")
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
    first.set_yticks(rows["place"], [short(name, 36) for name in rows["name"]])
    first.set_ylim(rows["place"].max() + 0.6, -0.6)
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    set_title(figure, f"{target}: which source {PLURAL[unit]} help, and which hurt")
    return figure


def _bars(
    axes: Axes,
    influence: pd.Series,
    low: pd.Series,
    high: pd.Series,
    place: pd.Series,
    labels: tuple[str, str],
) -> None:
    """Draw influences, by their sign, and their intervals where they are known."""
    for label, colour, side in zip(
        labels, (BLUE, VERMILION), (influence >= 0, influence < 0), strict=True
    ):
        if side.any():
            axes.barh(place[side], influence[side], height=0.72, color=colour, label=label)
    # Drawn by their ends, as those of a shrunk estimate are not around it; `lasso` has none.
    known = low.notna()
    axes.errorbar(
        ((low + high) / 2)[known],
        place[known],
        xerr=((high - low) / 2)[known],
        fmt="none",
        ecolor=BLACK,
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
    )


def _gap(axes: Axes, place: float, text: str) -> None:
    """Say across the axes that bars are left out at `place`."""
    axes.axhspan(place - 0.42, place + 0.42, color="#eeeeee", linewidth=0, zorder=3)
    across = axes.get_yaxis_transform()
    axes.text(0.5, place, text, transform=across, ha="center", va="center", fontsize=8, zorder=4)
