import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ttest_rel

from transfer_influence.counterfactual.curves import (
    point_means,
    summary_of,
    write_summary,
)
from transfer_influence.counterfactual.replicates import by_replicate
from transfer_influence.outcomes.tables import write_table
from transfer_influence.provenance import read_provenance

# 97.5 % points of Student's t with 2 and 3 degrees of freedom, from a printed table.
T2, T3 = 4.302653, 3.182446


def models_of(
    curves: dict[tuple[str, int], list[float]],
    validation: dict[tuple[str, int], float | list[float]] | None = None,
) -> pd.DataFrame:
    """Retrained models: accuracies of the replicates of each point, by order and number removed.

    Validation accuracies are those of the replicates, or the same for all of them.
    """
    validated = validation or {}
    return pd.DataFrame(
        [
            {
                "order": order,
                "budget": None if order == "none" else "epochs",
                "removed": removed,
                "replicate": replicate,
                "accuracy": accuracy,
                "validation_accuracy": on_validation,
                "validation_images": 10 if validated else None,
                "source_accuracy": 0.9,
                "images": 1000 - removed,
                "steps": 50,
            }
            for (order, removed), accuracies in curves.items()
            for replicate, (accuracy, on_validation) in enumerate(
                np.broadcast(accuracies, validated.get((order, removed), np.nan))
            )
        ]
    )


def row(table: pd.DataFrame, order: str, removed: int) -> pd.Series:
    return table[(table["order"] == order) & (table["removed"] == removed)].iloc[0]


CURVES = {
    ("none", 0): [0.70, 0.72, 0.74],
    ("top", 2): [0.60, 0.64, 0.65],
    ("top", 6): [0.40, 0.44, 0.48],
    ("bottom", 2): [0.71, 0.75, 0.76],
    ("bottom", 6): [0.71, 0.73, 0.76],
    ("random", 2): [0.68, 0.70, 0.72],
    ("random", 6): [0.60, 0.60, 0.63],
}
# Best on the test split: bottom 2. On the validation split: bottom 6, and top 0.
VALIDATION = {
    ("none", 0): 0.5,
    ("top", 2): 0.4,
    ("top", 6): 0.3,
    ("bottom", 2): 0.45,
    ("bottom", 6): 0.55,
    ("random", 2): 0.5,
    ("random", 6): 0.5,
}


def test_a_point_has_the_mean_of_its_replicates_and_the_t_interval_by_hand():
    point = row(summary_of(models_of({("top", 1): [0.1, 0.2, 0.3]})), "top", 1)
    half = T2 * 0.1 / np.sqrt(3)
    assert point["replicates"] == 3
    assert point["standard_deviation"] == pytest.approx(0.1)
    assert (point["accuracy"], point["low"], point["high"]) == pytest.approx(
        (0.2, 0.2 - half, 0.2 + half)
    )


def test_the_best_number_is_chosen_by_validation_even_where_the_test_split_disagrees():
    table = summary_of(models_of(CURVES, VALIDATION))
    assert row(table, "bottom", 2)["accuracy"] > row(table, "bottom", 6)["accuracy"]
    assert set(table[table["order"] == "bottom"]["best_removed"]) == {6}
    shuffled = models_of(CURVES, VALIDATION)
    shuffled["accuracy"] = np.random.default_rng(0).permutation(shuffled["accuracy"])
    best = ["order", "removed", "best_removed"]
    pd.testing.assert_frame_equal(summary_of(shuffled)[best], table[best])


def test_removing_nothing_can_be_best_and_wins_ties():
    table = summary_of(models_of(CURVES, VALIDATION))
    for order in ("top", "random"):  # all numbers of `random` are equally good
        assert row(table, order, 6)["best_removed"] == 0
        assert row(table, order, 6)[["gain", "gain_low", "gain_high"]].isna().all()
        assert row(table, order, 6)["gain_reason"] == "all replicates chose to remove nothing"
    assert pd.isna(row(table, "bottom", 6)["gain_reason"])


def test_means_that_differ_by_rounding_only_are_a_tie():
    nothing, three = [0.6, 0.7, 0.4], [0.9, 0.4, 0.4]  # both are 17 of 30 images
    curves = {("none", 0): nothing, ("top", 3): three}
    means = by_replicate(models_of(curves, curves), "top", "validation_accuracy").mean()
    assert means[3] > means[0]
    assert row(summary_of(models_of(curves, curves)), "top", 3)["best_removed"] == 0
    better = {**curves, ("top", 3): [0.9, 0.4, 0.41]}  # beyond rounding
    assert row(summary_of(models_of(better, better)), "top", 3)["best_removed"] == 3


def test_the_gain_is_on_the_test_split_and_paired_by_replicates():
    found = row(summary_of(models_of(CURVES, VALIDATION)), "bottom", 2)
    differences = np.array([0.71 - 0.70, 0.73 - 0.72, 0.76 - 0.74])
    half = T2 * differences.std(ddof=1) / np.sqrt(3)
    mean = differences.mean()
    expected = (mean, mean - half, mean + half)
    assert tuple(found[["gain", "gain_low", "gain_high"]]) == pytest.approx(expected)
    paired = ttest_rel(CURVES["bottom", 6], CURVES["none", 0]).confidence_interval(0.95)
    assert (found["gain_low"], found["gain_high"]) == pytest.approx(tuple(paired))


def test_each_replicate_gains_at_the_number_that_the_others_choose():
    # On validation replicate 0 is best at 2, by far; 1 and 2 are best at 6.
    validation = {
        ("none", 0): [0.5, 0.5, 0.5],
        ("top", 2): [0.9, 0.5, 0.5],
        ("top", 6): [0.5, 0.6, 0.6],
    }
    curves = {
        ("none", 0): [0.70, 0.60, 0.50],
        ("top", 2): [0.80, 0.61, 0.53],
        ("top", 6): [0.69, 0.65, 0.56],
    }
    found = row(summary_of(models_of(curves, validation)), "top", 6)
    assert found["best_removed"] == 2
    # 0 is sent to 6 by the others; 1 and 2 to 2, by replicate 0.
    assert found["gain"] == pytest.approx(np.mean([0.69 - 0.70, 0.61 - 0.60, 0.53 - 0.50]))
    alone = {key: values[:1] for key, values in curves.items()}
    own = {key: values[:1] for key, values in validation.items()}
    found = row(summary_of(models_of(alone, own)), "top", 6)
    assert found[["best_removed", "gain_replicates"]].tolist() == [2, 1]
    assert found["gain"] == pytest.approx(0.80 - 0.70)


def test_numbers_without_any_effect_gain_nothing_on_average():
    # Validation and test accuracy share the luck of the source model, 2 points, and nothing else.
    random, gains, flattered = np.random.default_rng(0), [], []
    for _ in range(400):
        luck = {("none", 0): random.normal(0, 0.02, 3)}
        luck.update({("top", removed): random.normal(0, 0.02, 3) for removed in (1, 2, 3, 4)})
        curves = {key: list(0.7 + values) for key, values in luck.items()}
        found = row(summary_of(models_of(curves, curves)), "top", 1)
        gains.append(found["gain"])
        best = found["best_removed"]
        chosen = curves["none", 0] if best == 0 else curves["top", best]
        flattered.append(np.mean(chosen) - np.mean(curves["none", 0]))
    assert np.mean(flattered) > 0.01
    gains = np.array(gains)[np.isfinite(gains)]  # else all replicates chose 0
    assert abs(gains.mean()) < 3 * gains.std() / np.sqrt(len(gains)) < 0.003


def test_the_area_of_straight_lines_is_that_of_the_triangle():
    # All start at 0.8; per unit, top loses 0.05 and random 0.02; the replicate shifts whole curves.
    counts, shifts = [1, 4, 10], np.array([0.0, 0.01, 0.05])
    curves = {("none", 0): list(0.8 + shifts)}
    for (order, slope), removed in itertools.product(
        [("top", 0.05), ("bottom", -0.01), ("random", 0.02)], counts
    ):
        curves[order, removed] = list(0.8 + shifts - slope * removed)
    table = summary_of(models_of(curves))
    for order, area in [("top", -0.03 * 10 * 10 / 2), ("bottom", 0.03 * 10 * 10 / 2)]:
        found = row(table, order, 4)[["area", "area_low", "area_high"]]
        assert found.tolist() == pytest.approx([area] * 3)  # the same in every replicate
    assert row(table, "random", 4)[["area", "area_low", "area_high"]].isna().all()


def test_the_area_has_the_t_interval_of_its_replicates():
    found = row(summary_of(models_of(CURVES)), "top", 2)
    above = [[0, -0.08, -0.2], [0, -0.06, -0.16], [0, -0.07, -0.15]]
    areas = [2 * (a + b) / 2 + 4 * (b + c) / 2 for a, b, c in above]
    mean, half = np.mean(areas), T2 * np.std(areas, ddof=1) / np.sqrt(3)
    expected = (mean, mean - half, mean + half)
    assert tuple(found[["area", "area_low", "area_high"]]) == pytest.approx(expected)


def test_the_area_is_over_the_numbers_that_both_curves_have():
    curves = {**CURVES, ("dogs", 2): [0.7, 0.7, 0.7], ("dogs", 3): [0.1, 0.1, 0.1]}
    found = row(summary_of(models_of(curves)), "dogs", 3)
    assert found["area"] == pytest.approx(np.mean([0.02, 0.0, -0.02]) * 2 / 2)
    alone = {key: value for key, value in curves.items() if key[0] not in ("none", "top")}
    assert np.isnan(row(summary_of(models_of(alone)), "dogs", 3)["area"])  # one number in common


def test_a_replicate_that_failed_at_one_point_is_left_out_of_what_needs_it():
    models = models_of({key: [*values, 0.5] for key, values in CURVES.items()}, VALIDATION)
    table = summary_of(without(models, "bottom", 6, [3]))
    whole = summary_of(models_of(CURVES, VALIDATION))
    for column in ("gain", "gain_low", "area", "area_low"):
        assert row(table, "bottom", 6)[column] == pytest.approx(row(whole, "bottom", 6)[column])
    top = row(table, "top", 6)  # has all four
    values = [*CURVES["top", 6], 0.5]
    half = T3 * np.std(values, ddof=1) / 2
    assert (top["low"], top["high"]) == pytest.approx(
        (np.mean(values) - half, np.mean(values) + half)
    )


def without(models: pd.DataFrame, order: str, removed: int, replicates: list[int]) -> pd.DataFrame:
    """The models but for replicates of one point, whose training failed."""
    point = (models["order"] == order) & (models["removed"] == removed)
    return models[~(point & models["replicate"].isin(replicates))]


def test_the_best_number_is_chosen_on_the_replicates_that_all_points_have():
    # Replicate 2 is the worst everywhere. Removing 2 costs every replicate 0.1, removing 6 nothing.
    levels = np.array([0.9, 0.8, 0.1, 0.8])
    curves = {("none", 0): levels, ("top", 2): levels - 0.1, ("top", 6): levels}
    models = models_of(curves, curves)
    assert row(summary_of(models), "top", 6)[["best_removed", "gain_replicates"]].tolist() == [0, 4]
    failed = without(models, "top", 2, [2])  # without its worst, its mean is the highest
    assert point_means(failed)["validation_accuracy"].idxmax() == 1
    found = row(summary_of(failed), "top", 6)
    assert found[["best_removed", "gain_replicates"]].tolist() == [0, 3]
    assert np.isnan(found["gain"])
    nothing_failed = without(models, "none", 0, [0])  # that with nothing removed is one of them
    assert row(summary_of(nothing_failed), "top", 6)["gain_replicates"] == 3
    none_left = without(failed, "top", 6, [0, 1, 3])
    found = row(summary_of(none_left), "top", 6)
    assert found["gain_replicates"] == 0
    assert found[["best_removed", "gain", "gain_low"]].isna().all()


def test_an_order_has_a_choice_of_its_own_and_so_have_its_replicates():
    models = without(models_of(CURVES, VALIDATION), "bottom", 2, [0])
    table = summary_of(models)
    expected = {"none": (None, None), "top": (3, 3), "bottom": (2, 2), "random": (3, 0)}
    for order, counts in expected.items():
        found = table[table["order"] == order][["gain_replicates", "area_replicates"]]
        assert {tuple(row) for row in found.astype(object).replace({pd.NA: None}).to_numpy()} == {
            counts
        }


def test_the_area_is_of_the_replicates_that_both_curves_have():
    four = models_of({key: [*values, 0.3] for key, values in CURVES.items()})
    whole = row(summary_of(models_of(CURVES)), "top", 6)
    for order in ("random", "top", "none"):
        removed = 0 if order == "none" else 2
        found = row(summary_of(without(four, order, removed, [3])), "top", 6)
        assert found["area_replicates"] == 3
        assert found["area"] == pytest.approx(whole["area"])
    assert row(summary_of(four), "top", 6)["area_replicates"] == 4
    # At 2 the curves have no replicate in common: no area, rather than one without that number.
    nowhere = without(without(four, "random", 2, [0, 1]), "top", 2, [2, 3])
    found = row(summary_of(nowhere), "top", 6)
    assert found["area_replicates"] == 0
    assert np.isnan(found["area"])


def test_no_intervals_from_fewer_than_three_replicates():
    two = {key: values[:2] for key, values in CURVES.items()}
    found = row(summary_of(models_of(two, VALIDATION)), "bottom", 6)
    assert found[["low", "high", "gain_low", "gain_high", "area_low", "area_high"]].isna().all()
    assert found["gain"] == pytest.approx(0.01)


def test_without_validation_no_number_is_best():
    table = summary_of(models_of(CURVES))
    assert table[["best_removed", "gain", "gain_low", "gain_high"]].isna().all(axis=None)
    assert table["area"].notna().any()


def test_rows_stand_in_the_order_of_the_curves_whatever_that_of_the_models():
    curves = {("dogs", 1): [0.5], **dict(reversed(CURVES.items()))}
    table = summary_of(models_of(curves))
    expected = [*CURVES, ("dogs", 1)]
    assert list(zip(table["order"], table["removed"], strict=True)) == expected


def test_a_summary_is_written_with_its_types_and_nulls(tmp_path):
    models = pa.Table.from_pandas(models_of(CURVES, VALIDATION), preserve_index=False)
    write_table(models, tmp_path / "models.parquet", "{}")
    write_summary(tmp_path / "models.parquet", tmp_path / "summary.parquet", '{"code": "abc"}')
    assert read_provenance(tmp_path / "summary.parquet")["code"] == "abc"
    table = pq.read_table(tmp_path / "summary.parquet")
    assert table["best_removed"].to_pylist() == [None, 0, 0, 6, 6, 0, 0]
    assert table["validation_images"].to_pylist() == [10] * 7
    assert table["order"].to_pylist() == [order for order, _ in CURVES]
    assert table["area"].null_count == 3  # of the baseline and `random`
    assert not pa.types.is_dictionary(table["order"].type)


def test_a_baseline_alone_has_a_summary():
    table = summary_of(models_of({("none", 0): [0.1, 0.2, 0.3]}))
    assert len(table) == 1
    assert table["best_removed"].isna().all()
