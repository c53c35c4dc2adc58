import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import convert_arrays, random_images
from docutils.core import publish_parts
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import spearmanr, t

from transfer_influence.config.study import PLURAL, Order, Outcome, Unit
from transfer_influence.counterfactual.curves import write_summary
from transfer_influence.counterfactual.tables import VALIDATION
from transfer_influence.errors import UserError
from transfer_influence.figures.accuracies import accuracy_distributions, accuracy_table
from transfer_influence.figures.counterfactuals import (
    ORDERS,
    PANELS,
    counterfactual_curves,
    counterfactual_table,
)
from transfer_influence.figures.images import contact_sheet, example_indices
from transfer_influence.figures.influences import MOST_BARS, influence_bars, influence_table
from transfer_influence.figures.reliability import (
    APART,
    reliability_curves,
    reliability_table,
)
from transfer_influence.figures.style import OUTCOMES, save
from transfer_influence.figures.tables import MOST_ROWS, save_table
from transfer_influence.provenance import identity, read_provenance

REPOSITORY = Path(__file__).parents[2]


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def write_ranking(folder: Path, classes: int, best: float = 1.0, worst: float = -1.0) -> Path:
    rng = np.random.default_rng(classes)
    influence = np.linspace(best, worst, classes)
    return write(
        folder / "ranking.parquet",
        {
            "rank": pa.array(range(1, classes + 1), pa.int32()),
            "unit": pa.array(rng.permutation(classes), pa.int32()),
            "name": [f"class {number}" for number in range(classes)],
            "influence": influence,
            "standard_error": rng.uniform(0.05, 0.2, classes),
            "low": influence - rng.uniform(0.1, 0.3, classes),
            "high": influence + rng.uniform(0.1, 0.3, classes),
            "q_value": rng.random(classes),
            "significant": rng.random(classes) < 0.5,
            "accuracy_influence": influence / 50,
            "accuracy_low": influence / 50 - 0.01,
            "accuracy_high": influence / 50 + 0.01,
            "accuracy_rank": pa.array(range(1, classes + 1), pa.int32()),
        },
    )


def write_counterfactuals(folder: Path, replicates: int) -> Path:
    points = [*itertools.product(ORDERS, [2, 4, 8]), ("none", 0)]
    rows = [(*point, replicate) for point in points for replicate in range(replicates)]
    order, removed, replicate = zip(*rows, strict=True)
    rng = np.random.default_rng(replicates)
    return write(
        folder / "counterfactuals.parquet",
        {
            "order": order,
            "budget": [None if each == "none" else "epochs" for each in order],
            "removed": pa.array(removed, pa.int32()),
            "replicate": pa.array(replicate, pa.int64()),
            "accuracy": rng.uniform(0.6, 0.9, len(rows)),
            "validation_accuracy": rng.uniform(0.6, 0.9, len(rows)),
            "validation_images": pa.array([40] * len(rows), pa.int32()),
            "class_accuracy": [[0.5, 0.5]] * len(rows),
            "auroc": pa.nulls(len(rows), pa.float64()),
            "source_accuracy": rng.uniform(0.9, 1.0, len(rows)),
            "images": pa.array([1000] * len(rows), pa.int64()),
            "steps": pa.array([50] * len(rows), pa.int64()),
            "mask": [b"\x00"] * len(rows),
        },
    )


def summary_of(counterfactuals: Path) -> Path:
    path = counterfactuals.with_suffix(".summary.parquet")
    write_summary(counterfactuals, path, "{}")
    return path


def write_summaries(folder: Path, count: int, models: int = 64) -> list[Path]:
    rng = np.random.default_rng(count)
    source = rng.uniform(0.9, 1.0, models)
    return [
        write(
            folder / f"summary{number}.parquet",
            {"accuracy": rng.uniform(0.4, 0.8, models), "source_accuracy": source},
        )
        for number in range(count)
    ]


def accuracies(path: Path, order: str, removed: int) -> np.ndarray:
    table = pq.read_table(path).to_pandas()
    return table[(table["order"] == order) & (table["removed"] == removed)]["accuracy"].to_numpy()


def bars(figure: Figure) -> list[Any]:
    found = [c for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    return sorted((bar for container in found for bar in container), key=lambda bar: bar.get_y())


def curves(axes: Axes) -> dict[str, ErrorbarContainer]:
    found = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    return {container.get_label(): container for container in found}


def segments(container: ErrorbarContainer) -> np.ndarray:
    """The ends of the error bars, (bars, 2 ends, 2 coordinates)."""
    (lines,) = container.lines[2]
    return np.array(lines.get_segments())


def legend_title(figure: Figure) -> str:
    return figure.legends[0].get_title().get_text()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_figure(figure: Figure, svg: Path) -> None:
    """Write a figure as a program does."""
    save(figure, svg, svg.with_suffix(".png"), "{}")


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "scripts" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


# Influences


def test_bars_are_as_long_as_the_influences(tmp_path):
    path = write_ranking(tmp_path, 20)
    table = pq.read_table(path).to_pandas()
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    assert [bar.get_width() for bar in bars(figure)] == pytest.approx(list(table["influence"]))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(table["name"])
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # the first class is on top


def test_influence_intervals_are_those_of_the_table(tmp_path):
    path = write_ranking(tmp_path, 20)
    table = pq.read_table(path).to_pandas()
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    (intervals,) = curves(figure.axes[0]).values()
    ends = segments(intervals)[:, :, 0]
    assert ends[:, 0] == pytest.approx(table["low"])
    assert ends[:, 1] == pytest.approx(table["high"])
    assert figure.axes[0].get_xlabel().endswith("(logits)\nwith 95 % interval")


def test_the_accuracy_stands_beside_the_outcome_that_ranks_in_points(tmp_path):
    path = write_ranking(tmp_path, 20)
    table = pq.read_table(path).to_pandas()
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    _, beside = figure.axes
    widths = [bar.get_width() for bar in beside.patches]
    assert widths == pytest.approx(list(100 * table["accuracy_influence"]))
    assert "accuracy, in points" in beside.get_xlabel()
    assert len(influence_bars(path, "accuracy", "digits, fixed").axes) == 1


def test_helpful_and_harmful_differ_in_colour(tmp_path):
    figure = influence_bars(write_ranking(tmp_path, 6), "raw_margin", "digits, fixed")
    colours = [bar.get_facecolor() for bar in bars(figure)]
    assert len(set(colours[:3])) == len(set(colours[3:])) == 1
    assert colours[0] != colours[3]


def test_a_side_without_classes_is_not_in_the_legend(tmp_path):
    path = write_ranking(tmp_path, 2, best=2.0, worst=1.0)
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    assert [text.get_text().split(":")[0] for text in figure.legends[0].get_texts()] == ["helpful"]


def test_of_subsets_of_one_size_a_class_is_compared_with_the_average(tmp_path):
    path = write_ranking(tmp_path, 4)
    figure = influence_bars(path, "raw_margin", "digits, fixed", one_size=True)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["does more than the average class", "does less than the average class"]


@pytest.mark.parametrize(
    ("classes", "gap"),
    [(40, None), (41, "1 more class in between"), (1000, "960 more classes in between")],
)
def test_many_classes_are_cut_to_the_first_and_last_20(tmp_path, classes, gap):
    path = write_ranking(tmp_path, classes)
    table = pq.read_table(path).to_pandas()
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    shown = pd.concat([table[:20], table[-20:]])
    assert [bar.get_width() for bar in bars(figure)] == pytest.approx(list(shown["influence"]))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(shown["name"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ([gap] if gap else [])


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_the_axis_is_named_after_the_outcome(tmp_path, outcome):
    figure = influence_bars(write_ranking(tmp_path, 2), outcome, "digits, fixed")
    assert OUTCOMES[outcome] in figure.axes[0].get_xlabel()


def test_class_names_are_text_and_not_formulas(tmp_path):
    table = pq.read_table(write_ranking(tmp_path, 2))
    column = table.schema.get_field_index("name")
    path = tmp_path / "named.parquet"
    pq.write_table(table.set_column(column, "name", [["$x^$", "a" * 50 + "b" * 50]]), path)
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    write_figure(figure, tmp_path / "figure.svg")  # "$x^$" as a formula would be an error
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "$x^$"
    assert names[1] == "a" * 17 + "…" + "b" * 18


def test_influences_without_intervals_are_drawn_without(tmp_path):
    path = write_ranking(tmp_path, 20)
    rows = pq.read_table(path)
    for name in ("standard_error", "low", "high", "q_value", "significant"):
        field = rows.schema.get_field_index(name)
        rows = rows.set_column(field, name, pa.nulls(20, rows.schema.field(name).type))
    pq.write_table(rows, path)
    figure = influence_bars(path, "raw_margin", "digits, fixed")
    assert len(bars(figure)) == 20
    assert figure.axes[0].get_xlabel().endswith("(logits)")
    write_figure(figure, tmp_path / "figure.svg")


def test_influence_table_is_sorted_by_rank(tmp_path):
    table = pq.read_table(write_ranking(tmp_path, 5))
    pq.write_table(table.take([3, 1, 4, 0, 2]), tmp_path / "shuffled.parquet")
    found = influence_table(tmp_path / "shuffled.parquet")
    assert found.to_dict("list") == table.to_pydict()


def test_a_table_of_very_many_units_has_the_ends_of_the_ranking(tmp_path):
    count = MOST_ROWS + 2
    path = write_ranking(tmp_path, count)
    half = MOST_ROWS // 2
    kept = [*range(1, half + 1), *range(count - half + 1, count + 1)]
    assert influence_table(path)["rank"].tolist() == kept
    figure = influence_bars(path, "raw_margin", "digits, fixed", "example")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{count - MOST_BARS} more examples in between"]
    assert "which source examples help" in figure.get_suptitle()


# Reliability


def write_reliability(folder: Path, name: str, halves: dict[int, float], needed: float) -> Path:
    """Planted split halves of so many models each."""
    rows = [("split_half", models, None, value, 0.0, 1.0) for models, value in halves.items()]
    rows += [
        ("reliability", 2 * models, None, 2 * value / (1 + value), None, None)
        for models, value in halves.items()
    ]
    if halves:
        value = rows[len(halves)][3]
        rows[len(halves)] = (*rows[len(halves)][:4], value / 2, (1 + value) / 2)
    most = None if needed > 100 else 2 * needed
    rows.append(("models_needed", 2 * max(halves, default=4), None, needed, needed / 2, most))
    rows.append(("linear_datamodeling_score", 12, None, 0.5, 0.4, 0.6))
    rows.append(("linear_datamodeling_score", 12, 3, 0.25, 0.1, 0.3))  # of one example
    columns = ("statistic", "models", "example", "value", "low", "high")
    types = (pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64(), pa.float64())
    values = zip(columns, zip(*rows, strict=True), types, strict=True)
    return write(folder / f"{name}.parquet", {c: pa.array(v, t) for c, v, t in values})


def test_reliability_is_drawn_up_to_the_models_that_are_enough(tmp_path):
    tables = [
        write_reliability(tmp_path, "difference_in_means", {32: 0.5, 16: 0.3}, 288.0),
        write_reliability(tmp_path, "ridge", {32: 0.95}, 40.0),
        write_reliability(tmp_path, "lasso", {}, np.nan),
    ]
    names = ["difference_in_means", "ridge", "lasso"]
    figure = reliability_curves(tables, names, "digits, fixed")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "difference in means: 290 models (140 or more)",
        "ridge: 40 models (20 to 80)",
        "lasso: unknown",
    ]
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    known = lines["difference in means: 290 models (140 or more)"]
    assert known.get_xdata().tolist() == [32, 64]
    assert known.get_ydata() == pytest.approx([0.6 / 1.3, 1 / 1.5])
    (ends,) = [bars.lines[2][0].get_segments() for bars in figure.axes[0].containers][:1]
    np.testing.assert_allclose(ends[0], [[64, 1 / 3], [64, 2.5 / 3]])
    left, right = figure.axes[0].get_xlim()
    assert left < 32
    assert right > 288
    dashed = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert dashed[0].get_xdata()[[0, -1]] == pytest.approx([64, 288])
    assert dashed[1].get_xdata()[[0, -1]] == pytest.approx([40 * APART, 64 * APART])
    assert dashed[0].get_ydata()[[0, -1]] == pytest.approx([1 / 1.5, 0.9])


def test_a_reliability_of_0_can_be_seen(tmp_path):
    path = write_reliability(tmp_path, "ridge", {32: 0.0, 16: 0.0}, np.inf)
    figure = reliability_curves([path], ["ridge"], "digits, fixed")
    axes = figure.axes[0]
    assert axes.get_lines()[1].get_ydata().tolist() == [0, 0]
    bottom, top = axes.get_ylim()
    assert -0.1 < bottom < -0.01  # the axis stays where reliability is, yet shows whole markers
    assert 1.01 < top < 1.1


def test_the_table_of_reliability_is_of_the_whole_target(tmp_path):
    path = write_reliability(tmp_path, "ridge", {32: 0.5}, 288.0)
    found = reliability_table([path], ["ridge"])
    assert found.columns.tolist() == ["estimator", "statistic", "models", "value", "low", "high"]
    assert found["estimator"].tolist() == ["ridge"] * 4
    assert found["value"].tolist() == pytest.approx([0.5, 1 / 1.5, 288, 0.5])


def test_plot_reliability_writes_figure_and_csv(tmp_path):
    path = write_reliability(tmp_path, "ridge", {32: 0.5, 16: 0.4}, 288.0)
    arguments = ["--tables", path, *settings(estimators=["ridge"])]
    done = run("plot_reliability.py", *arguments, *outputs(tmp_path, "svg", "png", "csv"))
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "report" / "figure.svg").read_text()
    assert pd.read_csv(tmp_path / "report" / "figure.csv")["models"].tolist() == [
        32,
        16,
        64,
        32,
        64,
        12,
    ]


# Counterfactuals


def test_every_order_has_colour_and_name():
    assert list(ORDERS) == list(get_args(Order))


def test_curves_are_means_over_replicates_in_per_cent(tmp_path):
    path = write_counterfactuals(tmp_path, 4)
    found = curves(counterfactual_curves(path, summary_of(path), "digits, fixed").axes[0])
    for order, (label, *_) in ORDERS.items():
        line = found[label].lines[0]
        assert line.get_xdata() == pytest.approx([0, 2, 4, 8])
        means = [accuracies(path, "none", 0).mean()]
        means += [accuracies(path, order, removed).mean() for removed in (2, 4, 8)]
        assert line.get_ydata() == pytest.approx(100 * np.array(means))


def test_orders_share_the_point_with_nothing_removed(tmp_path):
    path = write_counterfactuals(tmp_path, 3)
    found = curves(counterfactual_curves(path, summary_of(path), "digits, fixed").axes[0])
    baseline = (0, 100 * accuracies(path, "none", 0).mean())
    assert len(found) == len(ORDERS) + 1  # and the point itself
    for curve in found.values():
        assert tuple(curve.lines[0].get_xydata()[0]) == pytest.approx(baseline)


def test_curves_of_each_budget_have_a_panel(tmp_path):
    table = pq.read_table(write_counterfactuals(tmp_path, 4)).to_pandas()
    steps = table[table["order"] != "none"].assign(budget="steps", accuracy=0.5)
    path = write(tmp_path / "both.parquet", pa.Table.from_pandas(pd.concat([table, steps])))
    figure = counterfactual_curves(path, summary_of(path), "digits, fixed")
    titles = [axes.get_title(loc="left").splitlines() for axes in figure.axes]
    assert [title[0] for title in titles] == list(PANELS.values())
    said = [" ".join(title[1:]) for title in titles]
    assert [sentence.count(", at equal steps") for sentence in said] == [0, 2]
    left, right = (curves(axes) for axes in figure.axes)
    assert left.keys() == right.keys()
    for label, _, _ in ORDERS.values():
        assert list(right[label].lines[0].get_ydata()[1:]) == pytest.approx([50] * 3)
        assert min(left[label].lines[0].get_ydata()[1:]) > 50


def test_counterfactual_intervals_are_those_of_student(tmp_path):
    path = write_counterfactuals(tmp_path, 5)
    found = curves(counterfactual_curves(path, summary_of(path), "digits, fixed").axes[0])
    for order, (label, *_) in ORDERS.items():
        ends = segments(found[label])[:, :, 1]
        for (low, high), removed in zip(ends, (2, 4, 8), strict=True):
            values = 100 * accuracies(path, order, removed)
            half = t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
            assert (high - low) / 2 == pytest.approx(half)
            assert (high + low) / 2 == pytest.approx(values.mean())


@pytest.mark.parametrize("replicates", [1, 2])
def test_no_intervals_from_fewer_than_three_replicates(tmp_path, replicates):
    path = write_counterfactuals(tmp_path, replicates)
    figure = counterfactual_curves(path, summary_of(path), "digits, fixed")
    assert not any(curve.has_yerr for curve in curves(figure.axes[0]).values())
    assert "interval" not in legend_title(figure)
    table = counterfactual_table(summary_of(path))
    assert table["low"].isna().all()


def test_the_legend_says_what_the_intervals_are(tmp_path):
    path = write_counterfactuals(tmp_path, 3)
    figure = counterfactual_curves(path, summary_of(path), "digits, fixed")
    assert "95 % t-interval" in legend_title(figure)


def rings(figure: Figure) -> list[list[float]]:
    """Where rings are drawn."""
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    return [point for line in hollow for point in line.get_xydata().tolist()]


def test_a_ring_marks_the_best_number_of_each_order(tmp_path):
    path = write_counterfactuals(tmp_path, 3)
    summary = pq.read_table(summary_of(path)).to_pandas()
    expected = []
    for order in ORDERS:
        best = summary[summary["order"] == order]["best_removed"].iloc[0]
        values = accuracies(path, order if best else "none", best)
        expected.append(pytest.approx([best, 100 * values.mean()]))
    figure = counterfactual_curves(path, summary_of(path), "digits, fixed")
    assert rings(figure) == expected
    assert "ring: best on 40 validation images" in legend_title(figure)


def test_without_validation_there_are_no_rings(tmp_path):
    table = pq.read_table(write_counterfactuals(tmp_path, 3))
    for name, of in VALIDATION.items():
        column = table.column_names.index(name)
        table = table.set_column(column, name, pa.nulls(len(table), of))
    path = tmp_path / "other.parquet"
    pq.write_table(table, path)
    figure = counterfactual_curves(path, summary_of(path), "digits, fixed")
    assert rings(figure) == []
    assert "ring" not in legend_title(figure)


def test_lists_are_curves_by_their_names(tmp_path):
    table = pq.read_table(write_counterfactuals(tmp_path, 3)).to_pandas()
    table["order"] = table["order"].replace({"top": "cats", "random": "dogs"})
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    found = curves(counterfactual_curves(path, summary_of(path), "digits, fixed").axes[0])
    assert set(found) >= {"most harmful first", "cats", "dogs"}
    means = [100 * accuracies(path, "dogs", removed).mean() for removed in (2, 4, 8)]
    assert found["dogs"].lines[0].get_ydata()[1:] == pytest.approx(means)
    colours = [curve.lines[0].get_color() for curve in found.values()]
    assert len(set(colours)) == len(colours)


def with_lists(folder: Path, lists: list[str]) -> Figure:
    """Curves of the usual orders, and of lists that are equal to the random order."""
    table = pq.read_table(write_counterfactuals(folder, 3)).to_pandas()
    equal = table[table["order"] == "random"]
    table = pd.concat([table, *(equal.assign(order=name) for name in lists)])
    path = folder / "lists.parquet"
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    return counterfactual_curves(path, summary_of(path), "digits, fixed")


def test_many_lists_look_different(tmp_path):
    lists = [f"list {number}" for number in range(20)]
    found = curves(with_lists(tmp_path, lists).axes[0])
    lines = [curve.lines[0] for curve in found.values()]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(ORDERS) + 21


def test_error_bars_of_equal_curves_stand_apart(tmp_path):
    figure = with_lists(tmp_path, [f"list {number}" for number in range(5)])
    figure.draw_without_rendering()
    found = curves(figure.axes[0])
    ends = []
    for label in ["most helpful first", "random", *(f"list {number}" for number in range(5))]:
        line, bars = found[label].lines[0], found[label].lines[2][0]
        place = bars.get_transform().transform(segments(found[label])[-1])
        marker = line.get_transform().transform(line.get_xydata()[-1])
        assert marker[0] == pytest.approx(place[0, 0])  # a bar goes through its marker
        ends.append(place[0, 0])
    pixels = np.diff(sorted(ends))
    assert min(pixels) > 2
    assert sum(pixels) < 50


def test_all_that_is_drawn_lies_within_the_axes(tmp_path):
    axes = with_lists(tmp_path, ["cats"]).axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for curve in curves(axes).values():
        for ends in segments(curve):
            assert left < ends[0, 0] < right
            assert bottom < ends[0, 1] <= ends[1, 1] < top


@pytest.mark.parametrize(("length", "columns"), [(4, 4), (28, 3), (30, 3)])
def test_a_legend_of_long_names_fits_into_the_figure(tmp_path, length, columns):
    figure = with_lists(tmp_path, [f"{number}".ljust(length, "n") for number in range(5)])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
    assert legend._ncols == columns


def test_every_single_model_is_a_dot(tmp_path):
    path = write_counterfactuals(tmp_path, 3)
    (axes,) = counterfactual_curves(path, summary_of(path), "digits, fixed").axes
    dots = [line for line in axes.lines if line.get_alpha() is not None]
    drawn = sorted(value for line in dots for value in line.get_ydata())
    table = pq.read_table(path).to_pandas()
    assert drawn == pytest.approx(sorted(100 * table["accuracy"]))


def test_curves_without_some_orders(tmp_path):
    table = pq.read_table(write_counterfactuals(tmp_path, 3)).to_pandas()
    path = tmp_path / "top.parquet"
    kept = table[table["order"].isin(["none", "top"])]
    pq.write_table(pa.Table.from_pandas(kept, preserve_index=False), path)
    found = curves(counterfactual_curves(path, summary_of(path), "digits, fixed").axes[0])
    labels = [label for label, *_ in ORDERS.values()]
    assert [label for label in labels if label in found] == ["most helpful first"]
    assert found["most helpful first"].lines[0].get_xdata() == pytest.approx([0, 2, 4, 8])


# Accuracies


def test_histograms_count_every_model_and_mark_the_mean(tmp_path):
    summaries = write_summaries(tmp_path, 3)
    figure = accuracy_distributions(summaries, ["a, fixed", "a, full", "b, fixed"])
    tables = [pq.read_table(path).to_pandas() for path in summaries]
    values = [tables[0]["source_accuracy"], *(table["accuracy"] for table in tables)]
    assert len(figure.axes) == 4
    for axes, accuracy in zip(figure.axes, values, strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == 64
        assert axes.lines[0].get_xdata() == pytest.approx([100 * accuracy.mean()] * 2)
        assert f"{100 * accuracy.mean():.1f} %" in axes.get_title("left")


def test_models_that_are_all_alike_can_be_drawn(tmp_path):
    path = write(
        tmp_path / "alike.parquet", {"accuracy": [0.5, 0.5], "source_accuracy": [1.0, 1.0]}
    )
    write_figure(accuracy_distributions([path], ["a, fixed"]), tmp_path / "figure.svg")


def test_accuracy_table(tmp_path):
    (path,) = write_summaries(tmp_path, 1)
    found = accuracy_table([path], ["a, fixed"]).set_index("of")
    accuracy, before = (
        pq.read_table(path)[name].to_numpy() for name in ("accuracy", "source_accuracy")
    )
    assert found.loc["a, fixed"].to_dict() == {
        "models": 64,
        "mean": pytest.approx(accuracy.mean()),
        "standard_deviation": pytest.approx(accuracy.std(ddof=1)),
        "min": accuracy.min(),
        "max": accuracy.max(),
        "source_correlation": pytest.approx(spearmanr(accuracy, before).statistic),
    }
    assert np.isnan(found.loc["source models", "source_correlation"])
    assert list(found.index) == ["source models", "a, fixed"]


def test_names_must_match_summaries(tmp_path):
    with pytest.raises(UserError, match="2 names for 1 summaries"):
        accuracy_distributions(write_summaries(tmp_path, 1), ["a", "b"])


# Images


def test_examples_are_the_first_eight_of_each_class():
    labels = np.array([1, 0] * 20)
    chosen = example_indices(labels)
    assert chosen.tolist() == [*range(1, 17, 2), *range(0, 16, 2)]


def test_examples_of_many_classes_are_evenly_spaced():
    labels = np.repeat(np.arange(1000), 3)
    chosen = np.unique(labels[example_indices(labels)])
    assert len(chosen) == 20
    assert (chosen[0], chosen[-1]) == (0, 999)
    assert set(np.diff(chosen)) <= {52, 53}


@pytest.mark.parametrize("classes", [2, 5, 7, 20])
def test_contact_sheet_draws_every_image_in_the_row_of_its_class(classes):
    # Every pixel of image i has the value i + 1, and white lies between the images.
    labels = np.arange(3 * classes) % classes
    images = np.tile((np.arange(len(labels)) + 1)[:, None, None, None], (1, 4, 4, 3))
    names = [f"class {number}" for number in range(classes)]
    figure = contact_sheet(images.astype(np.uint8), labels, names, "Images")
    rows = []
    for axes in figure.axes:
        sheet = np.asarray(axes.images[0].get_array())
        ticks = [label.get_text() for label in axes.get_yticklabels()]
        for name, strip in zip(ticks, np.split(sheet, len(ticks)), strict=True):
            rows.append((name, [strip[2, 5 * place + 2, 0] for place in range(3)]))
    expected = [
        (name, [n + 1, n + 1 + classes, n + 1 + 2 * classes]) for n, name in enumerate(names)
    ]
    assert rows == expected
    assert figure.get_suptitle() == "Images"


def test_contact_sheet_says_how_many_classes_it_leaves_out():
    figure = contact_sheet(
        np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 999]), ["name"] * 1000, "Images"
    )
    assert figure.get_suptitle() == "Images (2 of 1000 classes)"


# Files


def every_figure(folder: Path, classes: int) -> dict[str, Figure]:
    labels = np.repeat(np.arange(min(classes, 20)), 8)
    names = [f"class {number}" for number in range(classes)]
    counterfactuals = write_counterfactuals(folder, 3)
    return {
        "influences": influence_bars(write_ranking(folder, classes), "raw_margin", "digits, fixed"),
        "counterfactuals": counterfactual_curves(
            counterfactuals, summary_of(counterfactuals), "digits, fixed"
        ),
        "accuracies": accuracy_distributions(write_summaries(folder, 1), ["a, fixed"]),
        "dataset": contact_sheet(
            random_images(len(labels), 16, 16), labels, names, "Training images of digits"
        ),
    }


@pytest.mark.parametrize("classes", [2, 1000])
def test_figures_open_and_equal_inputs_give_equal_bytes(tmp_path, classes):
    digests: list[dict[str, list[str]]] = []
    for _ in range(2):
        written = {}
        for name, figure in every_figure(tmp_path, classes).items():
            svg, png = tmp_path / f"{name}.svg", tmp_path / f"{name}.png"
            write_figure(figure, svg)
            with Image.open(png) as image:
                assert image.width == 1500
                assert image.height >= 300
                assert len(image.convert("RGB").getcolors(1 << 24)) > 10
            written[name] = [digest(svg), digest(png)]
        digests.append(written)
    assert digests[0] == digests[1]
    assert not list(tmp_path.glob(".*"))  # no temporary files


def test_settings_of_the_user_change_nothing(tmp_path):
    path = write_ranking(tmp_path, 3)
    svgs = [tmp_path / "usual.svg", tmp_path / "changed.svg"]
    changes = {"lines.linewidth": 9, "svg.fonttype": "none", "savefig.facecolor": "red"}
    for svg, changed in zip(svgs, [{}, changes], strict=True):
        with matplotlib.rc_context(changed):
            write_figure(influence_bars(path, "raw_margin", "digits, fixed"), svg)
    assert identity(svgs[0]) == identity(svgs[1])


def test_svg_carries_no_date(tmp_path):
    write_figure(every_figure(tmp_path, 2)["influences"], tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    assert text.startswith("<?xml")
    assert "<dc:date>" not in text


def test_tables_have_five_significant_digits_and_empty_intervals(tmp_path):
    table = pd.DataFrame(
        {"order": ["top"], "removed": [12345678], "low": [np.nan], "x": [1 / 3000]}
    )
    save_table(table, tmp_path / "table.csv")
    text = (tmp_path / "table.csv").read_text()
    assert text == "order,removed,low,x\ntop,12345678,,0.00033333\n"


def test_another_table_is_refused_in_one_sentence(tmp_path):
    (summary,) = write_summaries(tmp_path, 1)
    with pytest.raises(UserError, match=r"summary0\.parquet: has no column 'rank'"):
        influence_table(summary)


def test_a_table_without_rows_is_refused(tmp_path):
    (summary,) = write_summaries(tmp_path, 1, models=0)
    with pytest.raises(UserError, match="has no rows"):
        accuracy_table([summary], ["a, fixed"])


# Programs


ACCURACIES = '{"transfers": [["a", "fixed"], ["a", "full"]]}'


def settings(**values: Any) -> list[str]:
    return ["--settings", json.dumps({"title": "digits, fixed", **values})]


def outputs(folder: Path, *suffixes: str) -> list[Any]:
    return [part for s in suffixes for part in (f"--{s}", folder / "report" / f"figure.{s}")]


def test_plot_influences_writes_figure_and_csv(tmp_path):
    path = write_ranking(tmp_path, 20)
    arguments = ["--ranking", path, *settings(outcome="raw_margin", unit="class", one_size=False)]
    done = run("plot_influences.py", *arguments, *outputs(tmp_path, "svg", "png", "csv"))
    assert done.returncode == 0, done.stderr
    # The same bytes from another process, but for what made them.
    write_figure(influence_bars(path, "raw_margin", "digits, fixed"), tmp_path / "here.svg")
    assert identity(tmp_path / "report" / "figure.svg") == identity(tmp_path / "here.svg")
    told = read_provenance(tmp_path / "report" / "figure.svg")
    assert told["inputs"] == {"ranking": identity(path)}
    assert set(told["companions"]) == {"figure.png", "figure.csv"}
    table = pq.read_table(path).to_pandas()
    csv = pd.read_csv(tmp_path / "report" / "figure.csv")
    assert list(csv.columns) == [
        *("rank", "unit", "name", "influence", "standard_error"),
        *("low", "high", "q_value", "significant"),
        *("accuracy_influence", "accuracy_low", "accuracy_high", "accuracy_rank"),
    ]
    assert csv["name"].tolist() == table["name"].tolist()
    assert csv["influence"].to_numpy() == pytest.approx(table["influence"].to_numpy(), rel=1e-4)


def test_plot_counterfactuals_writes_figure_and_csv(tmp_path):
    path = write_counterfactuals(tmp_path, 4)
    arguments = ["--counterfactuals", path, "--summary", summary_of(path)]
    arguments += settings(unit="class")
    done = run("plot_counterfactuals.py", *arguments, *outputs(tmp_path, "svg", "png", "csv"))
    assert done.returncode == 0, done.stderr
    csv = pd.read_csv(tmp_path / "report" / "figure.csv", keep_default_na=False)
    assert csv["order"].tolist() == ["none"] + [order for order in ORDERS for _ in range(3)]
    assert csv["removed"].tolist() == [0, *[2, 4, 8] * len(ORDERS)]
    assert csv["replicates"].tolist() == [4] * len(csv)
    for row in csv.itertuples():
        values = accuracies(path, row.order, row.removed)
        half = t.ppf(0.975, 3) * values.std(ddof=1) / 2
        expected = (values.mean(), values.mean() - half, values.mean() + half)
        assert (row.accuracy, row.low, row.high) == pytest.approx(expected, rel=1e-4)


def test_plot_accuracies_writes_figure_and_csv(tmp_path):
    summaries = write_summaries(tmp_path, 2)
    arguments = ["--summaries", *summaries, "--settings", ACCURACIES]
    done = run("plot_accuracies.py", *arguments, *outputs(tmp_path, "svg", "png", "csv"))
    assert done.returncode == 0, done.stderr
    csv = pd.read_csv(tmp_path / "report" / "figure.csv")
    assert csv["of"].tolist() == ["source models", "a, fixed", "a, full"]
    means = [pq.read_table(path)["accuracy"].to_numpy().mean() for path in summaries]
    assert csv["mean"].tolist()[1:] == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (150, 130)])
def test_plot_dataset_draws_the_images_of_a_beton(tmp_path, height, width):
    folder = convert_arrays(tmp_path, random_images(30, height, width))
    done = run("plot_dataset.py", "--data", folder, *outputs(tmp_path, "svg", "png"))
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "report" / "figure.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 1000


def test_a_missing_table_is_one_sentence_on_the_screen(tmp_path):
    arguments = [
        "--counterfactuals",
        tmp_path / "none.parquet",
        "--summary",
        tmp_path / "none.parquet",
        *settings(unit="class"),
    ]
    done = run("plot_counterfactuals.py", *arguments, *outputs(tmp_path, "svg", "png", "csv"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "none.parquet: no such file" in done.stderr


# Captions


@pytest.mark.parametrize("unit", get_args(Unit))
@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "rules" / "captions").glob("*.rst")), ids=lambda path: path.stem
)
def test_captions_are_valid(path, unit):
    if path.stem.startswith("surrogates") and unit == "example":
        return  # a study of examples has none, as the config says
    snakemake = SimpleNamespace(
        config={
            "study": "demo",
            "models": 64,
            "source": {"dataset": "mixed"},
            "targets": {"a_": {}},
            "unit_and_units": [unit, PLURAL[unit]],
        },
        wildcards=SimpleNamespace(target="digits_", mode="fixed", dataset="digits_"),
    )
    # As Snakemake renders them, but strict.
    jinja = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    text = jinja.from_string(path.read_text(encoding="utf-8")).render(snakemake=snakemake)
    settings = {"halt_level": 2, "report_level": 2}  # a warning is an error
    html = publish_parts(text, writer="html", settings_overrides=settings)["html_body"]
    assert "{{" not in html
    other = {"class": "examples", "example": "classes"}[unit]
    assert f"source {other}" not in html
    assert "``" not in html
