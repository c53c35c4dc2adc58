"""How far surrogates agree with the influences, and what they cost."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from transfer_influence.config.study import Mode
from transfer_influence.figures.style import BLACK, BLUE, GREY, WIDTH, set_title, short, styled
from transfer_influence.figures.tables import read_rows
from transfer_influence.outcomes.tables import open_table
from transfer_influence.surrogates.agreement import INFLUENCES

# Column → what the axis of its panels says.
DRAWN = {
    "correlation": "rank correlation\nwith the influences",
    "linear_datamodeling_score": "rank correlation of predicted\nand measured outcomes",
}
AGAINST = ["against_influences_low", "against_influences_high"]
ROW = 0.19  # inches that a surrogate takes


def agreement_table(tables: Sequence[Path], transfers: Sequence[tuple[str, Mode]]) -> pd.DataFrame:
    """Return how far surrogates agree, all targets and modes together; the best first in each.

    Columns: `target`, `mode`, and those of `surrogates.agreement.write_agreement`.
    """
    parts = []
    for path, (target, mode) in zip(tables, transfers, strict=True):
        read_rows(path, ["surrogate", *DRAWN, "hours", *AGAINST])
        rows = read_rows(path, open_table(path).schema_arrow.names)
        own = rows["surrogate"] == INFLUENCES
        others = rows[~own].sort_values("correlation", ascending=False, kind="stable")
        rows = pd.concat([rows[own], others])
        rows.insert(0, "target", target)
        rows.insert(1, "mode", mode)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


@styled
def agreement_figure(table: pd.DataFrame) -> Figure:
    """Draw a row of panels a target and mode: two measures of agreement, and hours.

    Args:
        table: see `agreement_table`.
    """
    groups = list(table.groupby(["target", "mode"], sort=False))
    height = sum(len(rows) * ROW + 0.45 for _, rows in groups) + 1.1
    figure = Figure(figsize=(WIDTH, height))
    ratios = [len(rows) * ROW + 0.45 for _, rows in groups]
    panels = figure.subplots(
        len(groups),
        3,
        sharex="col",
        squeeze=False,
        gridspec_kw={"height_ratios": ratios, "width_ratios": [3, 3, 2]},
    )
    for row, ((target, mode), rows) in zip(panels, groups, strict=True):
        for axes, column in zip(row, DRAWN, strict=False):
            _dots(axes, rows, column)
        _hours(row[2], rows)
        row[2].set_xlim(*_decades(table["hours"]))
        for axes in row:
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_yticks(range(len(rows)), [])
            axes.grid(axis="x")
            axes.tick_params(axis="y", length=0)
        row[0].set_yticks(range(len(rows)), [short(name, 24) for name in rows["surrogate"]])
        said = textwrap.fill(f"{target}, {mode}{_said(rows)}", 110)
        # An empty title keeps room above; the text is wider than its panel, which must not grow.
        title = row[0].set_title(" " + "\n" * said.count("\n"), loc="left")
        row[0].annotate(
            said,
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=title.get_fontsize(),
        ).set_in_layout(False)
    for axes, label in zip(
        panels[-1], [*DRAWN.values(), "hours of jobs\n(a list takes none)"], strict=True
    ):
        axes.set_xlabel(label)
    set_title(figure, "What cheap methods say of the source classes, against the influences")
    return figure


def _said(rows: pd.DataFrame) -> str:
    """Say which surrogates predict as well as the influences, as far as can be told."""
    low, high = (rows[end] for end in AGAINST)
    if low.isna().all():
        return ""
    alike = rows["surrogate"][(low <= 0) & (high >= 0)]
    named = ", ".join(alike) or "none"
    return f". By predicted outcomes not told apart from the influences: {named}"


def _dots(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    """Draw an estimate of each surrogate with its interval; the influences' as a line as well."""
    values = rows[column].to_numpy(float)
    low, high = (rows[f"{column}_{end}"].to_numpy(float) for end in ("low", "high"))
    ends = np.abs(np.array([values - low, high - values]))
    own = (rows["surrogate"] == INFLUENCES).to_numpy()
    for chosen, colour in ((own, BLACK), (~own, BLUE)):
        places = np.flatnonzero(chosen)
        axes.errorbar(
            values[chosen],
            places,
            xerr=np.nan_to_num(ends[:, chosen]),
            fmt="o",
            color=colour,
            markersize=4,
            elinewidth=1.0,
            capsize=2,
        )
    axes.axvline(0, color=GREY, linewidth=0.8)
    for value in values[own & np.isfinite(values)]:
        axes.axvline(value, color=BLACK, linewidth=0.8, linestyle=":")


def _hours(axes: Axes, rows: pd.DataFrame) -> None:
    """Draw what each took, on a logarithmic scale."""
    hours = rows["hours"].to_numpy(float)
    own = (rows["surrogate"] == INFLUENCES).to_numpy()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for chosen, colour in ((own, BLACK), (~own, BLUE)):
        there = chosen & (hours > 0)
        axes.plot(
            hours[there], np.flatnonzero(there), "o", color=colour, markersize=4, linestyle="none"
        )


def _decades(hours: pd.Series) -> tuple[float, float]:
    """Return the powers of ten around all hours above 0."""
    known = np.log10(hours[hours > 0].to_numpy(float))
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    return 10 ** np.floor(low - 0.1), 10 ** np.ceil(high + 0.1)
