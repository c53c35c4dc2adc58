"""What retraining without some source units does to a target."""

import itertools
import textwrap
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Transform, offset_copy

from transfer_influence.config.study import BASELINE, PLURAL, Budget, Unit
from transfer_influence.counterfactual.verdicts import verdict_sentences
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

BROWN = "#7F4F24"
# Order of removal → what the legend calls it, colour, marker. What helps is blue in every figure.
ORDERS = {
    "top": ("most helpful first", BLUE, "o"),
    "bottom": ("most harmful first", VERMILION, "s"),
    "random": ("random", BLACK, "^"),
    "random_matched": ("random, as many images", BROWN, ">"),
}
# Of lists, each in turn: so many of either that 20 lists differ.
LIST_COLOURS = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
LIST_MARKERS = ["v", "P", "X", "*", "d"]
# What a panel is called by the budget of its models.
PANELS = {"epochs": "By epochs: as many as before", "steps": "By steps: as many as before"}
APART, SPREAD = 4.0, 24.0  # points between neighbouring curves, and at most between the outer ones


def counterfactual_table(summary: Path) -> pd.DataFrame:
    """Return the summary of the retrained models: one row an order and number of removed units.

    For its columns see `counterfactual.curves.summary_of_budgets`.
    """
    columns = ["order", "budget", "removed", "replicates", "accuracy", "low", "high"]
    read_rows(summary, [*columns, "best_removed", "validation_images"])
    return read_rows(summary, open_table(summary).schema_arrow.names)


@styled
def counterfactual_curves(
    counterfactuals: Path, summary: Path, target: str, unit: Unit = "class"
) -> Figure:
    """Draw the target accuracy against the number of removed units, one line an order.

    All lines start at the models that lost nothing. A ring marks the number of each order that is
    best by validation accuracy. Above stands what the curves show, and what they do not. Curves of
    each budget have a panel of their own.
    """
    table = counterfactual_table(summary)
    models = read_rows(counterfactuals, ["order", "budget", "removed", "accuracy"])
    budgets: list[Budget | None] = list(table["budget"].dropna().unique()) or [None]
    alone = len(budgets) == 1
    figure = Figure(figsize=(WIDTH, 4.7 if alone else 5.6))
    panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
    styles = _order_styles(table)
    for axes, budget in zip(panels, budgets, strict=True):
        _panel(axes, _of_budget(table, budget), _of_budget(models, budget), styles)
        axes.set_xlabel(f"number of source {PLURAL[unit]} removed")
        axes.margins(x=0.05 if alone else 0.14)  # for what is drawn beside the largest number
        said = _said(_of_budget(table, budget), 200 if alone else 58)
        named = "" if alone or budget is None else f"{PANELS[budget]}\n"
        axes.set_title(f"{named}{said}", loc="left", fontsize=8.5 if alone else 8)
    panels[0].set_ylabel("accuracy on the target (%)")
    drawn = "mean and 95 % t-interval" if table["low"].notna().any() else "mean"
    chosen = table[table["best_removed"].notna()]  # on the same images everywhere
    images = chosen["validation_images"].max()
    ring = f"; ring: best on {images:,.0f} validation images" if len(chosen) else ""
    title = f"Order of removal ({drawn};\nfaint dots: single retrained models{ring})"
    _legend(figure, panels[0], title)
    set_title(figure, f"{target}: accuracy after retraining without some source {PLURAL[unit]}")
    return figure


def _said(table: pd.DataFrame, width: int) -> str:
    """Return what some curves show, in lines of so many characters."""
    sentences = [sentence[0].upper() + sentence[1:] for sentence in verdict_sentences(table)]
    return "\n".join(textwrap.fill(sentence, width) for sentence in sentences)


def _of_budget(rows: pd.DataFrame, budget: Budget | None) -> pd.DataFrame:
    """Return what belongs to the curves of a budget: its own rows, and those of the baseline."""
    return rows[(rows["budget"] == budget) | rows["budget"].isna()]


def _panel(
    axes: Axes,
    table: pd.DataFrame,
    models: pd.DataFrame,
    styles: dict[str, tuple[str, str, str]],
) -> None:
    """Draw the curves of one budget."""
    baseline = table[table["order"] == BASELINE]
    shifts = _shifts(len(styles))
    right_of_all = _shifted(axes, max(shifts, default=0.0) + 6.0)
    for (order, (label, colour, marker)), shift in zip(styles.items(), shifts, strict=True):
        points = pd.concat([baseline, table[table["order"] == order]])
        place = _shifted(axes, shift)
        _curve(axes, points, colour, marker, label, place)
        _dots(axes, models[models["order"] == order], colour, right_of_all)
        _ring(axes, points, colour, place)
    level = 100 * baseline["accuracy"].item()
    axes.axhline(level, color=GREY, linewidth=1.0, linestyle=":", label="nothing removed")
    _curve(axes, baseline, GREY, "D", "", axes.transData)
    _dots(axes, models[models["order"] == BASELINE], GREY, right_of_all)
    # Axes do not make room by themselves for what is drawn shifted.
    for rows, value in [(models, "accuracy"), (table, "low"), (table, "high")]:
        axes.update_datalim((rows[["removed", value]] * [1, 100]).dropna())
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y")


def _order_styles(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Return label, colour and marker of each order there is, lists by their names at the end."""
    known = {order: look for order, look in ORDERS.items() if order in set(table["order"])}
    lists = [order for order in table["order"].unique() if order not in (BASELINE, *ORDERS)]
    styles = zip(lists, itertools.cycle(LIST_COLOURS), itertools.cycle(LIST_MARKERS))
    return known | {name: (short(name, 30), colour, marker) for name, colour, marker in styles}


def _shifts(curves: int) -> list[float]:
    """Return how far each curve is drawn to the right of its numbers, in points.

    Error bars at one number would else hide each other.
    """
    apart = min(APART, SPREAD / max(1, curves - 1))
    return [apart * (place - (curves - 1) / 2) for place in range(curves)]


def _shifted(axes: Axes, points: float) -> Transform:
    return offset_copy(axes.transData, axes.get_figure(root=True), x=points, units="points")


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    """Put a legend below a figure, in up to 4 columns: as many as its width has room for."""
    handles, labels = axes.get_legend_handles_labels()
    place: Literal["outside lower center"] = "outside lower center"
    for columns in (4, 3, 2, 1):
        legend = figure.legend(handles, labels, loc=place, ncols=columns, title=title)
        legend.get_title().set_multialignment("center")
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()


def _curve(
    axes: Axes, points: pd.DataFrame, colour: str, marker: str, label: str, place: Transform
) -> None:
    """Draw a curve; of one that starts at the baseline, which has its own marker, that is bare."""
    own = min(1, len(points) - 1)
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
        errorevery=(own, 1),
        markevery=slice(own, None),
        label=label,
        transform=place,
    )


def _ring(axes: Axes, points: pd.DataFrame, colour: str, place: Transform) -> None:
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
        transform=place,
    )


def _dots(axes: Axes, models: pd.DataFrame, colour: str, place: Transform) -> None:
    """Draw single models."""
    axes.plot(
        models["removed"],
        100 * models["accuracy"],
        linestyle="none",
        marker="o",
        markersize=3,
        markeredgewidth=0,
        color=colour,
        alpha=0.4,
        transform=place,
    )
