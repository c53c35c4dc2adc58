"""Figures and tables of the report, drawn from the result files.

A figure is a matplotlib `Figure` without pyplot, so nothing needs a display and nothing is shared.
Equal inputs give equal bytes: the user's own matplotlibrc, dates and random ids stay out. Colours
are those of Okabe & Ito, which colour-blind readers can tell apart.
"""

import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from transfer_influence.config.study import BASELINE, PLURAL, Estimator, Outcome, Unit
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.influence.prophecy import ENOUGH, spearman_brown
from transfer_influence.outcomes.tables import open_table, read_table

OUTCOMES: dict[Outcome, str] = {
    "raw_margin": "mean raw margin (logits)",
    "softmax_margin": "mean softmax margin",
    "raw_logit": "mean logit of the true class",
    "softmax_probability": "mean probability of the true class",
    "is_correct": "share of correct predictions",
    "accuracy": "accuracy (as the recipe of the target has it)",
    "auroc": "area under the ROC curve",
}

BLUE, VERMILION, GREY, BLACK = "#0072B2", "#D55E00", "#666666", "#000000"
# Order of removal → what the legend calls it, colour, marker. What helps is blue in every figure.
ORDERS = {
    "top": ("most helpful first", BLUE, "o"),
    "bottom": ("most harmful first", VERMILION, "s"),
    "random": ("random", BLACK, "^"),
}
# Colour and marker of lists, in turn.
LIST_STYLES = [("#009E73", "v"), ("#CC79A7", "P"), ("#E69F00", "X"), ("#56B4E9", "*")]
# Estimator → what the legend calls it, colour, marker.
ESTIMATORS: dict[Estimator, tuple[str, str, str]] = {
    "difference_in_means": ("difference in means", BLUE, "o"),
    "ridge": ("ridge", VERMILION, "s"),
    "lasso": ("lasso", BLACK, "^"),
}
HELP_OR_HURT = LinearSegmentedColormap.from_list("influence", [VERMILION, "#ffffff", BLUE])

WIDTH = 7.5  # inches, the text width of a report
MOST_BARS = 40
MOST_ROWS = 10_000  # of a table
MOST_CLASSES, EXAMPLES = 20, 8
MOST_OPPOSED = 30  # source units of a heat map
MOST_NUMBERED = 8  # columns of a heat map whose cells have room for numbers
LARGEST = 2.5  # standard deviations at the ends of the colours of a heat map
KNOWN = "_significant"  # ends the columns that say whether those beside them are

STYLE = {
    "figure.constrained_layout.use": True,
    "figure.titlesize": 11,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    # A class may be called "$5": names are text, never formulas.
    "text.parse_math": False,
}
styled = style.context(["default", STYLE])


def influence_table(ranking: Path) -> pd.DataFrame:
    """Return the ranking, best first.

    Of more than 10,000 units, the first 5,000 and the last 5,000: a report is to be opened.
    Columns: `rank`, `unit`, `name`, `influence`, `standard_error`, `low`, `high`, `q_value`,
    `significant`.
    """
    columns = ["rank", "unit", "name", "influence", "standard_error"]
    columns += ["low", "high", "q_value", "significant"]
    rows = _rows(ranking, columns).sort_values("rank", ignore_index=True)
    if len(rows) > MOST_ROWS:
        rows = pd.concat([rows[: MOST_ROWS // 2], rows[-MOST_ROWS // 2 :]], ignore_index=True)
    return rows


def counterfactual_table(summary: Path) -> pd.DataFrame:
    """Return the summary of the retrained models: one row an order and number of removed units.

    For its columns see `counterfactual.curves.summary_of`.
    """
    columns = ["order", "removed", "replicates", "accuracy", "low", "high", "best_removed"]
    _rows(summary, [*columns, "validation_images"])
    return _rows(summary, open_table(summary).schema_arrow.names)


def accuracy_table(summaries: Sequence[Path], names: Sequence[str]) -> pd.DataFrame:
    """Return the spread of the accuracies: one row for the source models, one for each summary.

    Columns: `of`, `models`, `mean`, `standard_deviation`, `min`, `max`.
    """
    return pd.DataFrame(
        [
            {
                "of": name,
                "models": len(values),
                "mean": values.mean(),
                "standard_deviation": values.std(ddof=1),
                "min": values.min(),
                "max": values.max(),
            }
            for name, values in _accuracies(summaries, names)
        ]
    )


@styled
def influence_bars(ranking: Path, outcome: Outcome, target: str, unit: Unit = "class") -> Figure:
    """Draw the influence of each source unit with its 95 % interval, most helpful on top.

    Of more than 40 units, the 20 most helpful and the 20 most harmful are drawn.
    """
    rows = influence_table(ranking)
    hidden = max(0, rows["rank"].max() - MOST_BARS)
    half = MOST_BARS // 2
    rows["place"] = np.arange(len(rows))
    if hidden:
        rows = pd.concat([rows[:half], rows[-half:].assign(place=np.arange(half) + half + 1)])
    figure = Figure(figsize=(WIDTH, 1.6 + 0.19 * len(rows)))
    axes = figure.subplots()
    for label, colour, side in [
        (f"helpful: models with the {unit} do better", BLUE, rows[rows["influence"] >= 0]),
        (f"harmful: models with the {unit} do worse", VERMILION, rows[rows["influence"] < 0]),
    ]:
        if len(side):
            axes.barh(side["place"], side["influence"], height=0.72, color=colour, label=label)
    # Drawn by their ends, as those of a shrunk estimate are not around it; `lasso` has none.
    known = rows[rows["low"].notna()]
    axes.errorbar(
        (known["low"] + known["high"]) / 2,
        known["place"],
        xerr=(known["high"] - known["low"]) / 2,
        fmt="none",
        ecolor=BLACK,
        elinewidth=0.8,
        capsize=1.5,
        capthick=0.8,
    )
    if hidden:
        _gap(axes, half, f"{hidden} more {unit if hidden == 1 else PLURAL[unit]} in between")
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(rows["place"], [_short(name, 36) for name in rows["name"]])
    axes.set_ylim(rows["place"].max() + 0.6, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(f"influence on the {OUTCOMES[outcome]}, with 95 % interval")
    figure.legend(loc="outside lower center", ncols=2)
    _title(figure, f"{target}: which source {PLURAL[unit]} help, and which hurt")
    return figure


@styled
def counterfactual_curves(
    counterfactuals: Path, summary: Path, target: str, unit: Unit = "class"
) -> Figure:
    """Draw the target accuracy against the number of removed units, one line an order.

    All lines start at the models that lost nothing. A ring marks the number of each order that is
    best by validation accuracy.
    """
    table = counterfactual_table(summary)
    models = _rows(counterfactuals, ["order", "removed", "accuracy"])
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
    _title(figure, f"{target}: accuracy after retraining without some source {PLURAL[unit]}")
    return figure


def reliability_table(tables: Sequence[Path], estimators: Sequence[Estimator]) -> pd.DataFrame:
    """Return how far the influences on a whole target can be relied on, all estimators together.

    Columns: `estimator`, `statistic`, `models`, `value`, `low`, `high`, as
    `influence.reliability.write_reliability` explains them.
    """
    columns = ["statistic", "models", "example", "value", "low", "high"]
    parts = [
        _rows(path, columns).assign(estimator=estimator)
        for path, estimator in zip(tables, estimators, strict=True)
    ]
    rows = pd.concat(parts, ignore_index=True)
    return rows.loc[rows["example"].isna(), ["estimator", *columns[:2], *columns[3:]]]


@styled
def reliability_curves(
    tables: Sequence[Path], estimators: Sequence[Estimator], target: str
) -> Figure:
    """Draw reliability against the number of models, one line an estimator.

    Solid as far as two halves of the models tell, dashed beyond, as Spearman and Brown predict, up
    to the models that a reliability of 0.9 takes.
    """
    table = reliability_table(tables, estimators)
    figure = Figure(figsize=(WIDTH, 3.8))
    axes = figure.subplots()
    axes.axhline(ENOUGH, color=GREY, linewidth=1.0, linestyle=":")
    for estimator in estimators:
        label, colour, marker = ESTIMATORS[estimator]
        rows = table[table["estimator"] == estimator].set_index("statistic")
        known = rows.loc[rows.index == "reliability"].dropna(subset="value").sort_values("models")
        needed = rows["value"].get("models_needed", np.nan)
        enough = f"about {needed:,.0f} models" if np.isfinite(needed) else "unknown"
        axes.plot(
            known["models"],
            known["value"],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            label=f"{label}: {enough}",
        )
        if len(known) and np.isfinite(needed):
            last = known.iloc[-1]
            models = np.geomspace(last["models"], max(needed, last["models"]), 50)
            predicted = spearman_brown(last["value"], models / last["models"])
            axes.plot(models, predicted, color=colour, linewidth=1.2, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda models, _: f"{models:,.0f}")
    axes.set_ylim(min(0.0, *axes.get_ylim()), 1.02)
    axes.grid(axis="y")
    axes.set_xlabel("number of source models")
    axes.set_ylabel("reliability of the influences")
    figure.legend(
        loc="outside lower center",
        ncols=3,
        title=f"Models for a reliability of {ENOUGH} (dotted; dashed: predicted)",
    )
    _title(figure, f"{target}: how many models are enough")
    return figure


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
        axes.set_title(f"{_short(name, 34)}\nmean {percent.mean():.1f} % (dashed)", loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    for axes in list(figure.axes)[len(panels) :]:
        axes.remove()
    figure.supxlabel("accuracy (%)", fontsize=9)
    figure.supylabel("number of models", fontsize=9)
    _title(figure, "Accuracy of the source models, and of the same models transferred")
    return figure


@styled
def opposed_classes(comparison: Path, outcome: Outcome, unit: Unit = "class") -> Figure:
    """Draw the influences of the 30 most opposed source units on all targets as a heat map.

    Colours are in standard deviations of the influences on a target and mode, so that columns can
    be compared; where there are at most 8, the influences stand in the cells. A ring marks those
    that are significant.

    Args:
        comparison: table of `applications.classes.compare_targets`.
        outcome: what the influences are on.
        unit: what was judged.
    """
    table = _rows(comparison, ["unit", "name", "opposed", "opposition"], others=True)
    marks = [name for name in map(str, table) if name.endswith(KNOWN)]
    columns = [name.removesuffix(KNOWN) for name in marks]
    spread = table[columns].std(ddof=0).replace(0.0, 1.0)
    shown = table[:MOST_OPPOSED]
    figure = Figure(figsize=(WIDTH, 1.9 + 0.2 * len(shown)))
    axes = figure.subplots()
    scaled = (shown[columns] / spread).to_numpy()
    image = axes.imshow(scaled, cmap=HELP_OR_HURT, vmin=-LARGEST, vmax=LARGEST, aspect="auto")
    rows, places = np.nonzero(shown[marks].fillna(False).to_numpy(dtype=bool))
    inside = len(columns) <= MOST_NUMBERED
    across = places + 0.36 if inside else places  # beside the number
    ring: dict[str, Any] = {"markersize": 4.5, "markerfacecolor": "none", "markeredgecolor": BLACK}
    axes.plot(across, rows, "o", clip_on=False, label="significant (q-value at most 5 %)", **ring)
    if inside:
        for (row, place), value in np.ndenumerate(shown[columns].to_numpy()):
            # White on the ends of the scale, whose colours are dark.
            colour = "white" if abs(scaled[row, place]) > 0.75 * LARGEST else BLACK
            axes.text(
                place, row, f"{value:+.2g}", ha="center", va="center", fontsize=7.5, color=colour
            )
    titles = [" ".join(_short(part, 22) for part in name.rsplit("_", 1)) for name in columns]
    turned: dict[str, Any] = (
        {}
        if inside and len(columns) <= 4
        else {"rotation": 40, "ha": "left", "rotation_mode": "anchor"}
    )
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(columns)), titles, **turned)
    axes.set_yticks(range(len(shown)), [_short(name, 36) for name in shown["name"]])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, extend="both", shrink=min(1.0, 2.4 / (0.2 * len(shown))))
    bar.set_label(f"influence on the {OUTCOMES[outcome]},\nin standard deviations of its column")
    figure.legend(loc="outside lower center")
    found = int(table["opposed"].sum())
    count = f"{found} {unit if found == 1 else PLURAL[unit]}"
    left_out = f" ({len(shown)} of {len(table):,} shown)" if len(shown) < len(table) else ""
    _title(figure, f"Source {PLURAL[unit]} that pull targets apart: {count} beyond doubt{left_out}")
    return figure


def example_indices(labels: np.ndarray) -> np.ndarray:
    """Choose the images of a contact sheet: the first 8 of each class, of at most 20 classes.

    Of more classes, 20 are chosen evenly spaced.
    """
    classes = np.unique(labels)
    chosen = classes[np.linspace(0, len(classes) - 1, min(len(classes), MOST_CLASSES)).astype(int)]
    return np.concatenate([np.flatnonzero(labels == label)[:EXAMPLES] for label in chosen])


@styled
def contact_sheet(
    images: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str
) -> Figure:
    """Draw images in rows, one row a class, in two blocks where there are more than 5 classes.

    Args:
        images: uint8 (n, side, side, 3).
        labels: class of each image (n,).
        classes: names of all classes, also of those without images here.
        title: of the figure; where classes are left out, their number is added.
    """
    shown = np.unique(labels)
    columns = np.bincount(labels).max()
    strips = [_strip(images[labels == label], columns) for label in shown]
    names = [_short(classes[label], 22) for label in shown]
    blocks = 1 if len(shown) <= 5 else 2
    lines = -(-len(shown) // blocks)
    pitch = len(strips[0])
    beside = 0.2 + 0.065 * max(map(len, names))  # inches for the names
    side = min(0.6, (WIDTH / blocks - beside) / columns)
    figure = Figure(figsize=(WIDTH, 0.4 + lines * side))
    for block, axes in enumerate(figure.subplots(1, blocks, squeeze=False).flat):
        rows = slice(block * lines, (block + 1) * lines)
        axes.imshow(np.vstack(strips[rows]))
        # Every block is as high as the first, so that all images have one size.
        axes.set_ylim(lines * pitch - 0.5, -0.5)
        axes.set_anchor("NW")
        axes.set_yticks((np.arange(len(names[rows])) + 0.47) * pitch, names[rows])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    left_out = f" ({len(shown)} of {len(classes)} classes)" if len(shown) < len(classes) else ""
    _title(figure, title + left_out)
    return figure


@styled
def save(figure: Figure, *paths: Path) -> None:
    """Write a figure to files, atomically; the suffix (`.svg`, `.png`) says the format."""
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        with atomic(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "figure"}):
            figure.savefig(temporary, dpi=200, metadata=metadata)


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, atomically, with five significant digits."""
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.5g", lineterminator="\n")


def first_rows(path: Path) -> pd.DataFrame:
    """Return the first 10,000 rows of a table, which may have none: a report is to be opened."""
    batches = open_table(path).iter_batches(MOST_ROWS)
    rows = next(batches, None)
    return read_table(path).to_pandas() if rows is None else rows.to_pandas()


def _rows(path: Path, columns: list[str], others: bool = False) -> pd.DataFrame:
    """Read columns of a table, or all `others` as well, and refuse a table without them."""
    file = open_table(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise UserError(
            f"{path}: has no column {missing[0]!r}, so it is no such table; name another file."
        )
    rows = file.read(None if others else columns).to_pandas()
    if rows.empty:
        raise UserError(f"{path}: has no rows; run the job that makes it again.")
    return rows


def _accuracies(summaries: Sequence[Path], names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """Return the accuracy of every model, by what it is of; source models first."""
    if len(names) != len(summaries):
        raise UserError(
            f"--names: {len(names)} names for {len(summaries)} summaries; give one for each."
        )
    tables = [_rows(path, ["accuracy", "source_accuracy"]) for path in summaries]
    # The same source models are behind all summaries.
    found = [("source models, own classes", tables[0]["source_accuracy"].to_numpy())]
    for name, table in zip(names, tables, strict=True):
        found.append((name, table["accuracy"].to_numpy()))
    return found


def _gap(axes: Axes, place: float, text: str) -> None:
    """Say across the axes that bars are left out at `place`."""
    axes.axhspan(place - 0.42, place + 0.42, color="#eeeeee", linewidth=0, zorder=3)
    across = axes.get_yaxis_transform()
    axes.text(0.5, place, text, transform=across, ha="center", va="center", fontsize=8, zorder=4)


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


def _order_styles(table: pd.DataFrame) -> dict[str, tuple[str, str, str]]:
    """Return label, colour and marker of each order, lists by their names after the known ones."""
    lists = [order for order in table["order"].unique() if order not in (BASELINE, *ORDERS)]
    styles = zip(lists, itertools.cycle(LIST_STYLES))
    return ORDERS | {name: (_short(name, 30), *look) for name, look in styles}


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


def _strip(images: np.ndarray, columns: int) -> np.ndarray:
    """Put images side by side, with room for `columns` of them."""
    side = images.shape[1]
    pitch = side + max(1, side // 14)
    cells = np.full((columns, pitch, pitch, 3), 255, np.uint8)
    cells[: len(images), :side, :side] = images
    return np.hstack(list(cells))


def _short(name: str, longest: int) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _title(figure: Figure, title: str) -> None:
    figure.suptitle(textwrap.fill(title, 80), x=0.02, ha="left", weight="bold")
