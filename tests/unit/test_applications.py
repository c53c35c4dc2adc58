"""Applications of influences, each on a truth planted by hand."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import random_images, write_settings
from PIL import Image
from scipy.stats import norm

from transfer_influence.applications import failures, pairs, subpopulations
from transfer_influence.applications.blocks import blocks, largest, leaders
from transfer_influence.applications.classes import list_extremes
from transfer_influence.applications.failures import list_failures
from transfer_influence.applications.opposed import compare_targets, opposed_p_values
from transfer_influence.applications.pairs import extreme_pairs, list_pairs
from transfer_influence.applications.pictures import (
    NEAR,
    difference_hash,
    hamming_distance,
    picture_hashes,
)
from transfer_influence.applications.subpopulations import list_carriers, write_helped
from transfer_influence.datasets.conversion import convert
from transfer_influence.errors import UserError
from transfer_influence.figures.comparison import opposed_classes
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import first_rows, save_listing
from transfer_influence.influence.intervals import q_values
from transfer_influence.outcomes.tables import list_column, write_table
from transfer_influence.provenance import Origin, fingerprint, identity, read_provenance
from transfer_influence.subsets import pack

PROVENANCE = Origin({"made": "by hand"}, {}, "").provenance()


def write_ranking(
    path: Path, influence: list[float], significant: list[bool] | None, names: str = "class"
) -> Path:
    """Write a ranking; what is significant has a p-value of 0.001, and anything else of 0.5."""
    order = np.argsort(-np.array(influence), kind="stable")
    known = pa.nulls(len(order), pa.bool_()) if significant is None else pa.array(significant)
    none = pa.nulls(len(order), pa.float64())
    columns = {
        "rank": pa.array(range(1, len(order) + 1), pa.int32()),
        "unit": pa.array(order, pa.int32()),
        "name": [f"{names} {unit}" for unit in order],
        "influence": np.array(influence)[order],
        **dict.fromkeys(["standard_error", "low", "high", "q_value"], none),
        "p_value": none
        if significant is None
        else np.where(np.array(significant)[order], 0.001, 0.5),
        "significant": known.take(pa.array(order)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.table(columns), path, PROVENANCE)
    return path


def write_influences(
    path: Path, of_examples: np.ndarray, of_classes: np.ndarray | None = None, groups: int = 3
) -> Path:
    """Influences (units, columns) with standard errors of 0.5, in row groups of `groups`."""
    classes = np.zeros((len(of_examples), 0)) if of_classes is None else of_classes
    columns: dict[str, Any] = {
        "unit": pa.array(range(len(of_examples)), pa.int32()),
        "name": [f"class {unit}" for unit in range(len(of_examples))],
    }
    for of, values in [("class", classes), ("example", of_examples)]:
        columns[f"{of}_influence"] = list_column(values.astype(np.float32))
        columns[f"{of}_standard_error"] = list_column(np.full_like(values, 0.5, np.float32))
        columns[f"{of}_freedom"] = np.full(len(values), 20.0)
    pq.write_table(pa.table(columns), path, row_group_size=groups)
    return path


def write_examples(path: Path, labels: np.ndarray) -> Path:
    names = [f"{index}.png" for index in range(len(labels))]
    pq.write_table(pa.table({"label": labels.astype(np.int64), "name": names}), path)
    return path


# Classes


def test_extremes_are_both_ends_of_the_ranking_each_class_once(tmp_path):
    ranking = write_ranking(tmp_path / "ranking.parquet", list(np.arange(50.0)), [True] * 50)
    table = list_extremes(ranking).to_pandas()
    assert table["rank"].tolist() == [*range(1, 21), *range(31, 51)]
    assert table["unit"].tolist() == [*range(49, 29, -1), *range(19, -1, -1)]
    few = write_ranking(tmp_path / "few.parquet", list(np.arange(25.0)), [True] * 25)
    assert list_extremes(few)["rank"].to_pylist() == [*range(1, 26)]


def test_a_listing_vouches_for_the_first_rows_of_it_as_csv(tmp_path):
    ranking = write_ranking(tmp_path / "ranking.parquet", [3.0, 1 / 3], [True, False])
    path, csv, other = (tmp_path / name for name in ("listing.parquet", "listing.csv", "other"))
    other.write_text("written before")
    save_listing(list_extremes(ranking), path, csv, PROVENANCE, [other])
    provenance = read_provenance(path)
    assert provenance["settings"] == {"made": "by hand"}
    assert provenance["companions"] == {file.name: fingerprint(file) for file in (csv, other)}
    assert pd.read_csv(csv)["influence"].tolist() == [3.0, 0.33333]
    assert first_rows(path)["unit"].tolist() == [0, 1]


TRANSFERS = [("birds", "fixed"), ("birds", "full"), ("cars", "fixed")]


def compared(folder: Path, known: bool = True) -> pd.DataFrame:
    """Five classes on two targets, one of them in two modes.

    Class 0 helps birds and hurts cars; 1 does so without being significant; 2 helps both; 3 hurts
    birds in one mode and helps them in the other; 4 hurts birds, and may help cars.
    """
    yes, no = True, False
    planted = [
        ([3.0, 2.0, 1.0, -3.0, -1.0], [yes, yes, yes, yes, yes]),
        ([0.3, 0.2, 0.1, 0.3, -0.1], [no, no, no, yes, no]),
        ([-20.0, -30.0, 10.0, 2.0, 20.0], [yes, no, yes, no, no]),
    ]
    rankings = [
        write_ranking(folder / f"{target}-{mode}.parquet", values, marks if known else None)
        for (target, mode), (values, marks) in zip(TRANSFERS, planted, strict=True)
    ]
    compare_targets(rankings, TRANSFERS, folder / "opposed.parquet", PROVENANCE)
    return pd.read_parquet(folder / "opposed.parquet")


def test_a_class_that_helps_one_target_and_hurts_another_is_flagged(tmp_path):
    table = compared(tmp_path).set_index("unit")
    assert table.index[table["opposed"]].tolist() == [0]
    assert table.loc[0, ["birds_fixed", "birds_full", "cars_fixed"]].tolist() == [3.0, 0.3, -20.0]
    assert table.loc[3, ["birds_fixed_significant", "cars_fixed_significant"]].tolist() == [1, 0]
    assert table.loc[4, "name"] == "class 4"


def test_the_most_opposed_class_comes_first_whatever_the_scale_of_a_target(tmp_path):
    table = compared(tmp_path)
    assert table["opposition"][1:].is_monotonic_decreasing
    assert table["unit"][0] == 0  # for certain, and thus before class 1, which is more opposed
    assert table["opposition"][0] < table["opposition"][1]
    birds = np.array([[3.0, 2, 1, -3, -1], [0.3, 0.2, 0.1, 0.3, -0.1]])
    birds /= birds.std(axis=1, keepdims=True)
    cars = np.array([-20.0, -30, 10, 2, 20])
    cars /= cars.std()
    for row in table.itertuples():
        one = min(birds[:, row.unit].max(), -cars[row.unit])
        other = min(cars[row.unit], -birds[:, row.unit].min())
        assert row.opposition == pytest.approx(max(one, other))
    assert table.set_index("unit").loc[2, "opposition"] < 0


def test_without_significance_no_class_is_called_opposed_or_not(tmp_path):
    assert compared(tmp_path, known=False)["opposed"].isna().all()


def opposed_share(targets: list[str], means: np.ndarray, studies: int) -> np.ndarray:
    """Return the share of classes called opposed in simulated studies, (studies,).

    Args:
        targets: of each column.
        means: of the influences in standard errors, (columns, classes).
        studies: how many.
    """
    rng = np.random.default_rng(len(targets))
    found = []
    for _ in range(studies):
        influences = list(rng.normal(means))
        p_values = [2 * norm.sf(np.abs(one)) for one in influences]
        q_value = q_values(opposed_p_values(targets, influences, p_values))
        found.append((q_value <= 0.05).mean())
    return np.array(found)


@pytest.mark.parametrize("columns", [3, 12, 24])
@pytest.mark.parametrize("modes", [1, 3])
def test_classes_without_any_positive_effect_are_not_called_opposed(columns, modes):
    """Half of them do less than the average for all targets, half are average."""
    targets = [f"target {column // modes}" for column in range(columns)]
    means = np.repeat([[-4.0, 0.0]], columns, axis=0).repeat(500, axis=1)
    found = opposed_share(targets, means, studies=200)
    assert (found > 0).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)


def test_classes_that_help_one_target_only_are_called_opposed_at_the_nominal_rate():
    """The worst case: any of the other targets may seem to be hurt."""
    targets = [f"target {column}" for column in range(12)]
    means = np.zeros((12, 1))
    means[0] = 20
    found = opposed_share(
        targets, means, studies=4000
    )  # a single class: its q-value is its p-value
    assert found.mean() <= 0.05 / 2 + 3 * np.sqrt(0.025 * 0.975 / 4000)


def test_classes_that_help_one_target_and_hurt_another_are_found():
    targets = [f"target {column}" for column in range(12)]
    means = np.zeros((12, 1000))
    means[0, :50], means[7, :50] = 6, -6
    rng = np.random.default_rng(0)
    influences = list(rng.normal(means))
    p_values = [2 * norm.sf(np.abs(one)) for one in influences]
    found = q_values(opposed_p_values(targets, influences, p_values)) <= 0.05
    assert found[:50].mean() > 0.9
    assert found[50:].mean() < 0.005


def test_one_target_pulls_nothing_apart():
    same = [np.array([5.0, -5.0]), np.array([-5.0, 5.0])]
    tiny = [np.full(2, 1e-9)] * 2
    assert opposed_p_values(["birds", "birds"], same, tiny).tolist() == [1, 1]


def test_rankings_of_different_classes_are_not_compared(tmp_path):
    rankings = [
        write_ranking(tmp_path / f"{names}.parquet", [1.0, 2.0], [True, True], names)
        for names in ("cats", "dogs")
    ]
    with pytest.raises(UserError, match=r"dogs.parquet: ranks other source classes than .*cats"):
        compare_targets(rankings, TRANSFERS[1:], tmp_path / "opposed.parquet", PROVENANCE)


@pytest.mark.parametrize("known", [True, False])
def test_the_heat_map_shows_numbers_and_rings_what_is_significant(tmp_path, known):
    table = compared(tmp_path, known)
    figure = opposed_classes(tmp_path / "opposed.parquet", "raw_margin")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == table["name"].tolist()
    titles = [label.get_text() for label in axes.get_xticklabels()]
    assert titles == ["birds fixed", "birds full", "cars fixed"]
    columns = ["birds_fixed", "birds_full", "cars_fixed"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    rings = set(zip(*axes.lines[0].get_data(), strict=True))
    for (row, place), value in np.ndenumerate(table[columns].to_numpy()):
        assert shown[place, row] == f"{value:+.2g}"
        marked = known and table[f"{columns[place]}_significant"][row]
        assert ((place + 0.36, row) in rings) == marked
    scaled = axes.images[0].get_array()
    np.testing.assert_allclose(scaled.std(axis=0), 1)
    assert np.sign(scaled[0]).tolist() == np.sign(table.loc[0, columns].astype(float)).tolist()
    assert figure.get_suptitle().endswith(
        "apart: 1 class" if known else "apart: significance unknown"
    )
    assert len(figure.legends) == known  # the ring is explained only where there may be one
    save(figure, tmp_path / "figure.svg", tmp_path / "figure.png", PROVENANCE)


def test_the_heat_map_counts_what_is_known(tmp_path):
    compared(tmp_path)
    table = pq.read_table(tmp_path / "opposed.parquet")
    field = table.column_names.index("opposed")
    for opposed, title in [
        ([True, True, None, None, None], "at least 2 classes"),
        ([False] * 5, "0 classes"),
        ([False, None, None, None, None], "significance unknown"),
    ]:
        path = tmp_path / "some.parquet"
        pq.write_table(table.set_column(field, "opposed", pa.array(opposed)), path)
        figure = opposed_classes(path, "raw_margin")
        assert figure.get_suptitle().endswith(f"apart: {title}")


def test_a_heat_map_of_some_units_is_scaled_by_all_and_fills_the_figure(tmp_path):
    rng = np.random.default_rng(0)
    birds, cars = rng.normal(size=(2, 100)).tolist()
    rankings = [
        write_ranking(tmp_path / f"{number}.parquet", values, None)
        for number, values in enumerate([birds, cars])
    ]
    compare_targets(rankings, TRANSFERS[1:], tmp_path / "opposed.parquet", PROVENANCE)
    figure = opposed_classes(tmp_path / "opposed.parquet", "raw_margin")
    axes = figure.axes[0]
    figure.draw_without_rendering()
    assert axes.get_position().y0 < 0.02  # without rings and legend, nothing is below the map
    scaled = axes.images[0].get_array()
    for (row, place), text in zip(np.ndindex(scaled.shape), axes.texts, strict=True):
        values = [birds, cars][place]
        assert scaled[row, place] * np.std(values) == pytest.approx(float(text.get_text()), rel=0.1)


# Blocks


def test_leaders_do_not_depend_on_row_groups_and_the_first_of_equals_leads(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(-4, 5, (11, 6))  # with many ties
    columns = np.array([4, 0, 5])
    for groups, sign in product([1, 4, 11], [1, -1]):
        path = write_influences(tmp_path / "influences.parquet", values, groups=groups)
        found = leaders(path, "example", columns, 3, sign)
        for place, column in enumerate(columns):
            expected = sorted(range(11), key=lambda unit: (-sign * values[unit, column], unit))[:3]
            assert found.units[:, place].tolist() == expected
            assert found.names[:, place].tolist() == [f"class {unit}" for unit in expected]
            assert found.influence[:, place].tolist() == values[expected, column].tolist()
    assert (found.standard_error == 0.5).all()


def test_of_equal_values_the_first_is_the_largest():
    assert largest(np.array([[1, 3, 3, 2], [5, 5, 5, 5]]), 3).tolist() == [[1, 2, 3], [0, 1, 2]]


def test_standard_errors_that_an_estimator_does_not_have_are_nan(tmp_path):
    path = write_influences(tmp_path / "influences.parquet", np.ones((4, 3)))
    table = pq.read_table(path)
    at = table.schema.get_field_index("example_standard_error")
    nulls = pa.nulls(4, table.schema.field(at).type)
    pq.write_table(table.set_column(at, "example_standard_error", nulls), path)
    (block,) = blocks(path, "example")
    assert block.influence.tolist() == [[1, 1, 1]] * 4
    assert np.isnan(block.standard_error).all()


# Subpopulations

CLASSES = ["bird", "car"]
PROVES = np.arange(12) > 6


@pytest.fixture
def influences(tmp_path) -> tuple[Path, np.ndarray]:
    """Influences of 7 source classes on 12 target examples; class 6 helps none."""
    values = np.random.default_rng(3).normal(size=(7, 12))
    values[6] = -1
    of_classes = np.stack([values[:, ::2].mean(axis=1), values[:, 1::2].mean(axis=1)], axis=1)
    return write_influences(tmp_path / "influences.parquet", values, of_classes), values


def test_each_source_class_is_given_the_examples_that_it_helps_most(tmp_path, influences):
    path, values = influences
    examples = write_examples(tmp_path / "examples.parquet", np.arange(12) % 2)
    write_helped(path, examples, CLASSES, PROVES, tmp_path / "helped.parquet", PROVENANCE)
    table = pd.read_parquet(tmp_path / "helped.parquet")
    for unit in range(7):
        rows = table[table["unit"] == unit]
        order = [index for index in np.argsort(-values[unit]) if values[unit, index] > 0]
        order = order[: subpopulations.MOST_HELPED]
        assert rows["example"].tolist() == order
        assert rows["place"].tolist() == list(range(1, len(order) + 1))
        assert rows["name"].tolist() == [f"{index}.png" for index in order]
        assert rows["class"].tolist() == [CLASSES[index % 2] for index in order]
        assert rows["influence"].tolist() == pytest.approx(values[unit, order])
        assert rows["proves"].tolist() == [index > 6 for index in order]
        assert set(rows["unit_name"]) <= {f"class {unit}"}
    assert (table["standard_error"] == 0.5).all()
    assert 6 not in set(table["unit"])
    assert read_provenance(tmp_path / "helped.parquet")["settings"] == {"made": "by hand"}


def test_each_target_class_is_given_the_source_classes_that_carry_it(tmp_path, influences):
    path, values = influences
    table = list_carriers(path, CLASSES).to_pandas()
    for label, name in enumerate(CLASSES):
        mean = values[:, label::2].mean(axis=1)
        order = [unit for unit in np.argsort(-mean) if mean[unit] > 0]
        rows = table[table["class"] == name]
        assert rows["unit"].tolist() == order
        assert rows["place"].tolist() == list(range(1, len(order) + 1))
        assert rows["unit_name"].tolist() == [f"class {unit}" for unit in order]
        assert rows["influence"].tolist() == pytest.approx(mean[order])
        assert set(rows["label"]) == {label}


def test_influences_that_were_left_out_make_tables_without_rows(tmp_path):
    path = write_influences(tmp_path / "influences.parquet", np.zeros((4, 0)))
    examples = write_examples(tmp_path / "examples.parquet", np.array([0, 1]))
    write_helped(path, examples, CLASSES, PROVES, tmp_path / "helped.parquet", PROVENANCE)
    assert len(extreme_pairs(path, 5)[0]) == 0
    helped = first_rows(tmp_path / "helped.parquet")
    for found, first in [(helped, "unit"), (list_carriers(path, CLASSES).to_pandas(), "label")]:
        assert (len(found), found.columns[0]) == (0, first)


# Failures


def write_summary(path: Path, predictions: np.ndarray, labels: np.ndarray) -> Path:
    rows = {
        "is_correct": list_column(predictions == labels),
        "prediction": list_column(predictions.astype(np.int32)),
    }
    pq.write_table(pa.table(rows), path, row_group_size=3)
    return path


def write_retrained(
    folder: Path, name: str, masks: list[list[int]], correct: list[list[int]], failed: int = 0
) -> tuple[Path, Path]:
    """Transfers and sources of one removal; `failed` more models have no outcome."""
    count = len(masks) + failed
    models, lost = range(count), [index >= len(masks) for index in range(count)]
    bits = [pack(np.array(mask, bool)) for mask in masks] + [pack(np.zeros(6, bool))] * failed
    right = np.array(correct + [[1] * len(correct[0])] * failed, bool)
    sources, transfers = folder / f"{name}.sources.parquet", folder / f"{name}.parquet"
    write_table(pa.table({"model": models, "mask": bits}), sources, PROVENANCE)
    origin = json.dumps({"settings": {}, "inputs": {"sources": identity(sources)}})
    rows = {"model": models, "is_correct": list_column(right), "failed": lost}
    write_table(pa.table(rows), transfers, origin)
    return transfers, sources


def failure_table(folder: Path, retrained: list[tuple[Path, Path]], influence: Any) -> pd.DataFrame:
    """Four examples: 0 is always right; 1 seldom, 2 never, and 3 half of the time."""
    labels = np.array([0, 1, 0, 1])
    names = ["cat", "dog", "bird"]
    predictions = np.array([[0, 0, 1, 1], [0, 0, 2, 1], [0, 2, 2, 0], [0, 1, 2, 0]])
    summary = write_summary(folder / "summary.parquet", predictions, labels)
    table = list_failures(
        summary,
        write_influences(folder / "influences.parquet", np.array(influence)),
        write_examples(folder / "examples.parquet", labels),
        names,
        np.array([True, False, True, False]),
        [transfers for transfers, _ in retrained],
        [sources for _, sources in retrained],
    )
    return table.to_pandas()


# Of example 2 the culprits are classes 4, 1 and 3, in this order; of example 1 class 5 only.
INFLUENCE = [
    [-9.0, 1.0, 1.0, -9.0],
    [-9.0, 0.0, -2.0, -9.0],
    [-9.0, 1.0, -0.1, -9.0],
    [-9.0, 1.0, -1.0, -9.0],
    [-9.0, 1.0, -3.0, -9.0],
    [-9.0, -1.0, 5.0, -9.0],
]


WITHOUT_FOUR = [1, 1, 1, 1, 0, 1]  # the culprit of example 2
WITHOUT_FOUR_AND_ONE = [1, 0, 1, 1, 0, 1]
WITHOUT_TWO = [1, 1, 0, 1, 1, 1]  # no culprit of any example
RIGHT, WRONG = [1, 0, 1, 1], [1, 0, 0, 1]  # about example 2


def removal(
    folder: Path, mask: list[int], correct: list[list[int]], failed: int = 0
) -> tuple[Path, Path]:
    """Models that lost the same; see `write_retrained`."""
    name = "".join(map(str, mask))
    return write_retrained(folder, name, [mask] * len(correct), correct, failed)


def test_failures_stand_with_their_culprits_and_the_models_that_lost_them(tmp_path):
    retrained = [
        removal(tmp_path, [1] * 6, [[1, 0, 0, 1], [1, 1, 0, 1]]),
        removal(tmp_path, WITHOUT_FOUR, [RIGHT, WRONG], failed=2),
        removal(tmp_path, WITHOUT_FOUR_AND_ONE, [RIGHT]),
        removal(tmp_path, [1, 0, 1, 1, 1, 1], [RIGHT]),
        removal(tmp_path, [0, 0, 1, 1, 1, 1], [RIGHT]),
        removal(tmp_path, [0, 1, 0, 1, 1, 1], [RIGHT, WRONG, WRONG]),
        removal(tmp_path, [0, 1, 0, 0, 1, 1], [RIGHT]),
    ]
    table = failure_table(tmp_path, retrained, INFLUENCE)
    assert table["example"].tolist() == [2, 2, 2, 1]  # the worst first
    assert table["share_correct"].tolist() == [0, 0, 0, 0.25]
    assert table["class"].tolist() == ["cat"] * 3 + ["dog"]
    assert table["proves"].tolist() == [True] * 3 + [False]
    assert table["predicted"].tolist() == ["bird"] * 3 + ["cat"]
    assert table["name"].tolist() == ["2.png"] * 3 + ["1.png"]
    assert table["unit"].tolist() == [4, 1, 3, 5]
    assert table["unit_name"].tolist() == ["class 4", "class 1", "class 3", "class 5"]
    assert table["place"].tolist() == [1, 2, 3, 1]
    assert table["influence"].tolist() == [-3, -2, -1, -1]
    assert table["standard_error"].tolist() == [0.5] * 4
    # Three models lost class 4, one of them class 1 as well; none also lost 3; none lost 5.
    assert table["removed_models"].tolist() == [3, 1, 0, 0]
    assert table["removed_correct"][:2].tolist() == pytest.approx([2 / 3, 1])
    # Of those that lost one or two, five kept class 4; of those that lost two, three kept class 1.
    assert table["control_models"].tolist() == [5, 3, 0, 0]
    assert table["control_correct"][:2].tolist() == pytest.approx([3 / 5, 1 / 3])
    assert table[["removed_correct", "control_correct"]][2:].isna().all(axis=None)
    assert table["whole_models"].tolist() == [2] * 4
    assert table["whole_correct"].tolist() == [0, 0, 0, 0.5]
    assert table["corrected"].isna().all()  # two models are too few to tell


@pytest.mark.parametrize(
    ("removed", "control", "whole", "corrected"),
    [
        ([RIGHT] * 7 + [WRONG], [WRONG] * 7 + [RIGHT], [WRONG] * 3, True),
        ([RIGHT] * 8, [RIGHT] * 8, [WRONG] * 3, False),  # any removal does it
        ([RIGHT] * 8, [RIGHT] * 8, [RIGHT] * 3, False),  # right anyway
        ([RIGHT] * 8, [WRONG] * 8, [RIGHT] * 3, False),
        ([RIGHT] * 3, [WRONG, WRONG, RIGHT], [WRONG] * 3, False),  # so few may do it by chance
        ([RIGHT, WRONG] * 8, [WRONG] * 16, [WRONG] * 3, False),  # half are not most
        ([RIGHT] * 8, [WRONG] * 12, [RIGHT, WRONG] * 2, True),
        ([RIGHT] * 2, [WRONG] * 8, [WRONG] * 3, None),
        ([RIGHT] * 8, [WRONG] * 2, [WRONG] * 3, None),
        ([RIGHT] * 8, [WRONG] * 8, [WRONG] * 2, None),
        ([RIGHT] * 8, [], [WRONG] * 3, None),
    ],
)
def test_a_failure_is_corrected_if_removing_its_culprit_and_no_other_class_does_it(
    tmp_path, removed, control, whole, corrected
):
    kinds = [(WITHOUT_FOUR, removed), (WITHOUT_TWO, control), ([1] * 6, whole)]
    retrained = [removal(tmp_path, mask, correct) for mask, correct in kinds if correct]
    table = failure_table(tmp_path, retrained, INFLUENCE)
    counts = table[["removed_models", "control_models", "whole_models"]]
    assert counts.iloc[0].tolist() == [len(removed), len(control), len(whole)]
    assert table["corrected"][0] is corrected


def test_models_that_lost_another_number_of_classes_are_no_control(tmp_path):
    retrained = [
        removal(tmp_path, [1] * 6, [WRONG] * 3),
        removal(tmp_path, WITHOUT_FOUR, [RIGHT] * 3),
        removal(tmp_path, [0, 1, 0, 1, 1, 1], [WRONG] * 3),
    ]
    table = failure_table(tmp_path, retrained, INFLUENCE)
    assert table["control_models"][0] == 0
    assert table["corrected"][0] is None


def test_a_lesser_culprit_is_not_credited_with_what_the_first_one_does(tmp_path):
    # Without class 4 all are right, whether they have lost class 1, 2 or 3 with it.
    retrained = [
        removal(tmp_path, [1] * 6, [WRONG] * 3),
        removal(tmp_path, WITHOUT_FOUR_AND_ONE, [RIGHT] * 3),
        removal(tmp_path, [1, 1, 0, 1, 0, 1], [RIGHT] * 3),
        removal(tmp_path, [1, 1, 1, 0, 0, 1], [RIGHT] * 3),
        removal(tmp_path, [0, 1, 0, 1, 1, 1], [WRONG] * 3),
    ]
    table = failure_table(tmp_path, retrained, INFLUENCE)
    assert table["control_models"][:2].tolist() == [3, 9]
    assert table["control_correct"][:2].tolist() == pytest.approx([0, 6 / 9])
    assert table["corrected"][:2].tolist() == [True, False]


def test_without_retrained_models_nothing_is_checked(tmp_path):
    table = failure_table(tmp_path, [], INFLUENCE)
    assert table["unit"].tolist() == [4, 1, 3, 5]
    assert table["removed_models"].tolist() == [0] * 4
    unknown = ["removed_correct", "control_correct", "whole_correct", "p_value", "corrected"]
    assert table[unknown].isna().all(axis=None)


def test_without_influences_on_examples_failures_are_listed_without_culprits(tmp_path):
    table = failure_table(tmp_path, [], np.zeros((6, 0)))
    assert table["example"].tolist() == [2, 1]
    assert table[["place", "unit", "influence", "removed_models"]].isna().all(axis=None)


def test_an_example_that_no_class_hurts_has_no_culprit(tmp_path):
    table = failure_table(tmp_path, [], np.abs(INFLUENCE))
    assert table["example"].tolist() == [2, 1]
    assert table["unit"].isna().all()


def test_the_worst_failures_are_kept(monkeypatch):
    monkeypatch.setattr(failures, "MOST_FAILURES", 3)
    share = np.array([0.5, 0.2, 0.49, 0.0, 0.2, 0.9])
    assert failures.failures(share).tolist() == [3, 1, 4]


# Pairs


def photograph(seed: int, side: int = 48) -> np.ndarray:
    """A smooth random picture, uint8 (side, side, 3)."""
    coarse = random_images(1, 6, 6, seed)[0]
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def noisy(image: np.ndarray, seed: int = 0, size: float = 4) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, size, image.shape)
    return np.clip(image * 0.9 + 10 + noise, 0, 255).astype(np.uint8)


def test_near_duplicates_have_near_hashes_and_other_pictures_have_not():
    pictures = [photograph(seed) for seed in range(30)]
    own = np.array([difference_hash(picture) for picture in pictures], np.uint64)
    again = [difference_hash(noisy(picture, seed)) for seed, picture in enumerate(pictures)]
    distance = hamming_distance(own[:, None], np.array(again, np.uint64))
    same = np.eye(30, dtype=bool)
    assert (distance[same] <= NEAR).all()
    assert (distance[~same] > NEAR).all()
    assert 24 < distance[~same].mean() < 40  # of 64 bits, half differ by chance


def test_a_hash_has_a_bit_for_each_pixel_clearly_brighter_than_its_right_neighbour():
    grey = np.random.default_rng(1).integers(0, 30, (8, 9)).astype(np.uint8)
    image = np.repeat(np.repeat(grey, 4, axis=0), 4, axis=1)[..., None].repeat(3, axis=2)
    bits = "".join(
        "1" if int(grey[row, column]) - int(grey[row, column + 1]) > 4 else "0"
        for row in range(8)
        for column in range(8)
    )
    assert difference_hash(image) == int(bits, 2)
    assert hamming_distance(np.array([0b1011], np.uint64), np.array([0b10], np.uint64)) == [2]


@pytest.mark.parametrize("groups", [1, 4, 9])
def test_extreme_pairs_are_those_of_a_sort_of_all(tmp_path, groups):
    values = np.random.default_rng(5).integers(-30, 31, (9, 20))  # with ties
    path = write_influences(tmp_path / "influences.parquet", values, groups=groups)
    units, examples, influence, error, freedom = extreme_pairs(path, 7)
    every = [(values[unit, example], unit, example) for unit, example in np.ndindex(values.shape)]
    helpful = sorted(every, key=lambda pair: (-pair[0], *pair[1:]))[:7]
    harmful = sorted(every)[:7][::-1]
    found = list(zip(influence.tolist(), units.tolist(), examples.tolist(), strict=True))
    assert found == helpful + harmful
    assert error.tolist() == [0.5] * 14
    assert freedom.tolist() == [20] * 14


def test_pairs_of_one_sign_only_are_not_taken_for_the_other(tmp_path):
    path = write_influences(tmp_path / "influences.parquet", np.array([[2.0, 0.0], [1.0, 3.0]]))
    assert extreme_pairs(path, 7)[2].tolist() == [3, 2, 1]


def converted(folder: Path, name: str, classes: list[str], train: Any, test: Any) -> Path:
    """Convert lists of (image, label)."""
    folder.mkdir(exist_ok=True)
    arrays = {}
    for split, images in [("train", train), ("test", test)]:
        arrays[f"{split}_images"] = np.stack([image for image, _ in images])
        arrays[f"{split}_labels"] = np.array([label for _, label in images])
    np.savez(folder / f"{name}.npz", **arrays)
    source = str(folder / f"{name}.npz")
    write_settings(folder, name, kind="arrays", source=source, classes=classes)
    convert(name, [folder], folder / name)
    return folder / name


def test_planted_near_duplicates_and_conflicting_labels_are_found(tmp_path):
    pictures = [photograph(seed, side=48) for seed in range(8)]
    source = converted(
        tmp_path,
        "source",
        ["cat", "dog", "fox"],
        [(pictures[0], 0), (pictures[1], 0), (pictures[2], 2), (pictures[3], 1), (pictures[4], 1)],
        [(pictures[5], 0), (pictures[6], 1), (pictures[7], 2)],
    )
    smaller = [
        np.asarray(Image.fromarray(noisy(picture)).resize((40, 32))) for picture in pictures[:3]
    ]
    other = np.asarray(Image.fromarray(pictures[7]).resize((40, 32)))
    target = converted(
        tmp_path,
        "target",
        ["dog", "cat", "cow"],
        [(other, 0), (other // 2, 1), (other // 3, 2)],
        # Near-duplicates of 0, under its label; of 1, under another; of 2, which is a fox.
        [(smaller[0], 1), (smaller[1], 0), (smaller[2], 2), (other, 0)],
    )
    influence = np.zeros((5, 4))
    influence[[0, 1, 2, 3], [0, 1, 2, 3]] = 4, -3, 2, 1
    path = write_influences(tmp_path / "influences.parquet", influence)
    table = list_pairs(path, source, target, np.array([True, False] * 2)).to_pandas()
    assert table["influence"].tolist() == [4, 2, 1, -3]
    assert table["unit"].tolist() == [0, 2, 3, 1]
    assert table["example"].tolist() == [0, 2, 3, 1]
    assert table["proves"].tolist() == [True, True, False, False]
    assert table["unit_class"].tolist() == ["cat", "fox", "dog", "cat"]
    assert table["class"].tolist() == ["cat", "cow", "dog", "dog"]
    assert table["near_duplicate"].tolist() == [True, True, False, True]
    assert not table["same_pixels"].any()
    assert table["conflicting"].tolist() == [False, None, False, True]
    assert (table["distance"] <= NEAR).tolist() == table["near_duplicate"].tolist()
    names = pd.read_parquet(source / "train.examples.parquet")["name"]
    assert table["unit_name"].tolist() == names[table["unit"]].tolist()


def test_equal_pixels_are_near_duplicates_whatever_their_hashes(tmp_path, monkeypatch):
    pictures = [photograph(seed, side=16) for seed in range(4)]
    images = [(picture, label % 2) for label, picture in enumerate(pictures)]
    source = converted(tmp_path, "source", ["a", "b"], images[:2], images[2:])
    target = converted(tmp_path, "target", ["a", "b"], images[2:], images[:2])
    monkeypatch.setattr(pairs, "NEAR", -1)
    path = write_influences(tmp_path / "influences.parquet", np.array([[2.0, -1.0], [-2.0, 1.0]]))
    table = (
        list_pairs(path, source, target, np.array([True, False] * 2))
        .to_pandas()
        .set_index(["unit", "example"])
    )
    assert table["same_pixels"].to_dict() == {(i, j): i == j for i, j in np.ndindex(2, 2)}
    assert table["near_duplicate"].equals(table["same_pixels"])
    assert not table["conflicting"].any()


def test_hashes_of_a_beton_are_those_of_its_pictures_in_the_order_asked_for(tmp_path):
    pictures = [photograph(seed, side=64) for seed in range(6)]
    images = [(picture, label % 2) for label, picture in enumerate(pictures)]
    folder = converted(tmp_path, "source", ["a", "b"], images[:4], images[4:])
    found = picture_hashes(folder / "train.beton", np.array([3, 0, 3, 1]))
    assert found.tolist() == [difference_hash(pictures[index]) for index in (3, 0, 3, 1)]
    assert picture_hashes(folder / "train.beton", np.array([], np.int64)).tolist() == []
