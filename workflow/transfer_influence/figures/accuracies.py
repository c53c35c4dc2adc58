"""How accurate the models are."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_influence.errors import UserError
from transfer_influence.figures.style import BLACK, BLUE, WIDTH, set_title, short, styled
from transfer_influence.figures.tables import read_rows
from transfer_influence.influence.correlation import rank_correlation


def accuracy_table(summaries: Sequence[Path], names: Sequence[str]) -> pd.DataFrame:
    """Return the spread of the accuracies: one row for the source models, one for each summary.

    Columns: `of`, `models`, `mean`, `standard_deviation`, `min`, `max`; and `source_correlation`,
    Spearman's, over models, with the accuracy of the source model before the transfer. That is of
    the classes that a model has seen.
    """
    (_, before), *_ = found = _accuracies(summaries, names)
    return pd.DataFrame(
        [
            {
                "of": name,
                "models": len(values),
                "mean": values.mean(),
                "standard_deviation": values.std(ddof=1),
                "min": values.min(),
                "max": values.max(),
                "source_correlation": rank_correlation(before, values) if place else None,
            }
            for place, (name, values) in enumerate(found)
        ]
    )


@styled
def accuracy_distributions(summaries: Sequence[Path], names: Sequence[str]) -> Figure:
    """Draw a histogram of the source models' accuracy, and one for each summary, means marked."""
    panels = _accuracies(summaries, names)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, 0.6 + 2.1 * lines))
    grid = figure.subplots(lines, columns, squeeze=False).flat
    for axes, (name, values) in zip(grid, panels, strict=False):
        percent = 100 * values
        axes.hist(percent, bins="auto", color=BLUE, edgecolor="white", linewidth=0.5)
        axes.axvline(percent.mean(), color=BLACK, linewidth=1.4, linestyle="--")
        axes.set_title(f"{short(name, 34)}\nmean {percent.mean():.1f} % (dashed)", loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    figure.supxlabel("accuracy (%)", fontsize=9)
    figure.supylabel("number of models", fontsize=9)
    set_title(figure, "Accuracy of the source models, and of the same models transferred")
    return figure


def _accuracies(summaries: Sequence[Path], names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Return the accuracy of every model, by what it is of; source models first."""
    if len(names) != len(summaries):
        raise UserError(
            f"--names: {len(names)} names for {len(summaries)} summaries; give one for each."
        )
    tables = [read_rows(path, ["accuracy", "source_accuracy"]) for path in summaries]
    # The same source models are behind all summaries.
    found = [("source models", tables[0]["source_accuracy"].to_numpy())]
    for name, table in zip(names, tables, strict=True):
        found.append((name, table["accuracy"].to_numpy()))
    return found
