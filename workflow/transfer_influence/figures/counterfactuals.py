"""What retraining without some source units does to a target."""

import itertools
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from transfer_influence.config.study import BASELINE, PLURAL, Unit
from transfer_influence.figures.style import (
    BLACK,
    BLUE,
    GREY,
    VERMILION,
    WIDTH,
    set_title,
    short,
    styled,
)
from transfer_influence.figures.tables import read_rows
from transfer_influence.outcomes.tables import open_table

# Order of removal → what the legend calls it, colour, marker. What helps is blue in every figure.
ORDERS = {
    "top": ("most helpful first", BLUE, "o"),
    "bottom": ("most harmful first", VERMILION, "s"),
    "random": ("random", BLACK, "^"),
}
# Colour and marker of lists, in turn.
LIST_STYLES = [("#009E73", "v"), ("#CC79A7", "P"), ("#E69F00", "X"), ("#56B4E9", "*")]


def counterfactual_table(summary: Path) -> pd.DataFrame:
    """Return the summary of the retrained models: one row an order and number of removed units.

    For its columns see `counterfactual.curves.summary_of`.
    """
    columns = ["order", "removed", "replicates", "accuracy", "low", "high", "best_removed"]
    read_rows(summary, [*columns, "validation_images"])
    return read_rows(summary, open_table(summary).schema_arrow.names)


@styled
def counterfactual_curves(
    counterfactuals: Path, summary: Path, target: str, unit: Unit = "class"
) -> Figure:
    """Draw the target accuracy against the number of removed units, one line an order.

    All lines start at the models that lost nothing. A ring marks the number of each order that is
    best by validation accuracy.
    """
    table = counterfactual_table(summary)
    models = read_rows(counterfactuals, ["order", "removed", "accuracy"])
    figure = Figure(figsize=(WIDTH, 4.4))
    axes = figure.subplots()
    baseline = table[table["order"] == BASELINE]
    for order, (label, colour, marker) in _order_styles(table).items():
        points = table[table["order"] == order]
        if len(points):
            points = pd.concat([baseline, points])
            _curve(axes, points, colour, marker, label)
            _dots(axes, models[models["order"] == order], colour)
            _ring(axes, points, colour)
    level = 100 * baseline["accuracy"].item()
    axes.axhline(level, color=GREY, linewidth=1.0, linestyle=":", label="nothing removed")
    _curve(axes, baseline, GREY, "D", label="")
    _dots(axes, models[models["order"] == BASELINE], GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")
    axes.set_xlabel(f"number of source {PLURAL[unit]} removed")
    axes.set_ylabel("accuracy on the target (%)")
    drawn = "mean and 95 % t-interval" if table["low"].notna().any() else "mean"
    chosen = table[table["best_removed"].notna()]  # on the same images everywhere
    images = chosen["validation_images"].max()
    ring = f"; ring: best on {images:,.0f} validation images" if len(chosen) else ""
    figure.legend(
        loc="outside lower center",
        ncols=4,
        title=f"Order of removal ({drawn}; faint dots: single retrained models{ring})",
    )
    set_title(figure, f"{target}: accuracy after retraining without some source {PLURAL[unit]}")
    return figure


def _order_styles(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Return label, colour and marker of each order, lists by their names after the known ones."""
    lists = [order for order in table["order"].unique() if order not in (BASELINE, *ORDERS)]
    styles = zip(lists, itertools.cycle(LIST_STYLES))
    return ORDERS | {name: (short(name, 30), *look) for name, look in styles}


def _curve(axes: Axes, points: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    half = 100 * (points["high"] - points["accuracy"])
    axes.errorbar(
        points["removed"],
        100 * points["accuracy"],
        yerr=half if half.notna().any() else None,
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.6,
        elinewidth=1.0,
        capsize=3,
        label=label,
    )


def _ring(axes: Axes, points: pd.DataFrame, colour: str) -> None:
    """Draw a ring around the point of a curve that is best by validation accuracy, if one is."""
    best = points[points["removed"] == points["best_removed"].iloc[-1]]
    axes.plot(
        best["removed"],
        100 * best["accuracy"],
        linestyle="none",
        marker="o",
        markersize=12,
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.4,
    )


def _dots(axes: Axes, models: pd.DataFrame, colour: str) -> None:
    """Draw single models, a little to the right of their mean so that both can be seen."""
    axes.plot(
        models["removed"],
        100 * models["accuracy"],
        linestyle="none",
        marker="o",
        markersize=3,
        markeredgewidth=0,
        color=colour,
        alpha=0.4,
        transform=offset_copy(axes.transData, axes.get_figure(root=True), x=6, units="points"),
    )
