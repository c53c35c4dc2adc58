"""How far influences can be relied on, and how many models are enough."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from transfer_influence.config.study import Estimator
from transfer_influence.figures.style import BLACK, BLUE, GREY, VERMILION, WIDTH, set_title, styled
from transfer_influence.figures.tables import read_rows
from transfer_influence.influence.prophecy import ENOUGH, rounded, spearman_brown

# Estimator → what the legend calls it, colour, marker.
ESTIMATORS: dict[Estimator, tuple[str, str, str]] = {
    "difference_in_means": ("difference in means", BLUE, "o"),
    "ridge": ("ridge", VERMILION, "s"),
    "lasso": ("lasso", BLACK, "^"),
}
APART = 1.02  # from the markers of one estimator to those of the next, as a factor


def reliability_table(tables: Sequence[Path], estimators: Sequence[Estimator]) -> pd.DataFrame:
    """Return how far the influences on a whole target can be relied on, all estimators together.

    Columns: `estimator`, `statistic`, `models`, `value`, `low`, `high`, as
    `influence.reliability.write_reliability` explains them.
    """
    columns = ["statistic", "models", "example", "value", "low", "high"]
    parts = [
        read_rows(path, columns).assign(estimator=estimator)
        for path, estimator in zip(tables, estimators, strict=True)
    ]
    rows = pd.concat(parts, ignore_index=True)
    return rows.loc[rows["example"].isna(), ["estimator", *columns[:2], *columns[3:]]]


@styled
def reliability_curves(
    tables: Sequence[Path], estimators: Sequence[Estimator], target: str
) -> Figure:
    """Draw reliability against the number of models, one line an estimator.

    Solid as far as the models tell, with the 95 % interval of all of them, dashed beyond, as
    Spearman and Brown predict, up to the models that a reliability of 0.9 takes.
    """
    table = reliability_table(tables, estimators)
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots()
    axes.axhline(ENOUGH, color=GREY, linewidth=1.0, linestyle=":")
    for place, estimator in enumerate(estimators):
        beside = APART**place  # or equal values would hide each other
        label, colour, marker = ESTIMATORS[estimator]
        rows = table[table["estimator"] == estimator].set_index("statistic")
        known = rows.loc[rows.index == "reliability"].dropna(subset="value").sort_values("models")
        enough = rows[rows.index == "models_needed"].iloc[0]
        needed = enough["value"]
        axes.plot(
            beside * known["models"],
            known["value"],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            label=f"{label}: {_models(enough)}",
        )
        sure = known.dropna(subset="low")
        ends = [sure["value"] - sure["low"], sure["high"] - sure["value"]]
        axes.errorbar(
            beside * sure["models"], sure["value"], ends, fmt="none", ecolor=colour, capsize=3
        )
        if len(known) and np.isfinite(needed):
            last = known.iloc[-1]
            first, end = sorted([float(last["models"]), float(needed)])
            models = np.geomspace(first, end, 50)
            predicted = spearman_brown(last["value"], models / last["models"])
            axes.plot(beside * models, predicted, color=colour, linewidth=1.2, linestyle="--")
    axes.set_xscale("log", base=2)
    shown = table.loc[table["statistic"].isin(["reliability", "models_needed"])]
    shown = shown[np.isfinite(shown["value"])]
    numbers = [*shown["models"], *shown.loc[shown["statistic"] == "models_needed", "value"]]
    if numbers:  # a single point has no limits of its own
        axes.set_xlim(min(numbers) / 1.3, max(numbers) * 1.3)
    axes.xaxis.set_major_formatter(lambda models, _: f"{models:,.0f}")
    axes.set_ylim(-0.02, 1.02)  # markers at 0 and 1 are whole
    axes.grid(axis="y")
    axes.set_xlabel("number of source models")
    axes.set_ylabel("reliability of the influences")
    figure.legend(
        loc="outside lower center",
        ncols=3,
        title=f"Models for a reliability of {ENOUGH} (dotted; dashed: predicted)",
    )
    set_title(figure, f"{target}: how many models are enough")
    return figure


def _models(needed: pd.Series) -> str:
    """Say how many models a reliability of 0.9 takes."""
    if not np.isfinite(needed["value"]):
        return "unknown"
    fewest = f"{rounded(needed['low']):,}"
    most = f" to {rounded(needed['high']):,}" if np.isfinite(needed["high"]) else " or more"
    return f"{rounded(needed['value']):,} models ({fewest}{most})"
