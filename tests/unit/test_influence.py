from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr, ttest_ind

from transfer_influence.errors import UserError
from transfer_influence.influence import (
    DifferenceInMeans,
    Influences,
    estimate,
    write_influences,
    write_ranking,
)
from transfer_influence.outcomes.tables import list_column, matrix, read_provenance
from transfer_influence.subsets import pack


def random_masks(models: int, classes: int, seed: int = 0) -> np.ndarray:
    """Half of the classes each, and no class in nearly all or nearly none."""
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(classes) < classes // 2 for _ in range(models)])


def names(classes: int) -> list[str]:
    return [f"class {index}" for index in range(classes)]


def influences(
    masks: np.ndarray, outcomes: np.ndarray, parts: list[int] | None = None
) -> Influences:
    """Influences of outcomes that arrive in pieces which end at `parts`."""
    estimator = DifferenceInMeans(masks.shape[1], outcomes.shape[1])
    for rows in np.split(np.arange(len(masks)), parts or []):
        estimator.add(masks[rows], outcomes[rows])
    return estimator.result(names(masks.shape[1]))


def planted(models: int = 300, classes: int = 8, columns: int = 5, noise: float = 0.5):
    rng = np.random.default_rng(1)
    masks = random_masks(models, classes)
    effects = rng.normal(size=(classes, columns))
    return masks, masks @ effects + rng.normal(0, noise, (models, columns)), effects


def test_influences_are_those_of_welchs_t_test():
    masks, outcomes, _ = planted(40)
    found = influences(masks, outcomes)
    for unit in range(masks.shape[1]):
        test = ttest_ind(outcomes[masks[:, unit]], outcomes[~masks[:, unit]], equal_var=False)
        with_class, without = outcomes[masks[:, unit]], outcomes[~masks[:, unit]]
        difference = with_class.mean(axis=0) - without.mean(axis=0)
        np.testing.assert_allclose(found.influence[unit], difference, rtol=1e-12)
        np.testing.assert_allclose(
            found.influence[unit] / found.standard_error[unit], test.statistic, rtol=1e-11
        )


def test_influences_are_those_of_a_loop():
    masks, outcomes, _ = planted(25, 4, 3)
    found = influences(masks, outcomes)
    for unit in range(4):
        for column in range(3):
            sides = []
            for side in (True, False):
                values = [
                    float(y[column])
                    for mask, y in zip(masks, outcomes, strict=True)
                    if mask[unit] == side
                ]
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
                sides.append((mean, variance / len(values)))
            (mean_with, error_with), (mean_without, error_without) = sides
            assert found.influence[unit, column] == pytest.approx(mean_with - mean_without)
            assert found.standard_error[unit, column] == pytest.approx(
                (error_with + error_without) ** 0.5
            )


def test_planted_effects_are_recovered():
    masks, outcomes, effects = planted(4000)
    found = influences(masks, outcomes)
    # A class competes for a place with the others, so its influence is its effect beyond theirs.
    classes = len(effects)
    expected = (effects - effects.mean(axis=0)) * classes / (classes - 1)
    assert (np.abs(found.influence - expected) < 4.5 * found.standard_error).all()
    for column in range(effects.shape[1]):
        assert spearmanr(found.influence[:, column], effects[:, column]).statistic > 0.95


def test_a_standard_error_is_the_spread_of_the_estimate():
    estimates, errors = [], []
    for seed in range(400):
        outcomes = np.random.default_rng([3, seed]).normal(size=(40, 1))
        found = influences(random_masks(40, 4, seed), outcomes)
        estimates.append(found.influence[0, 0])
        errors.append(found.standard_error[0, 0])
    assert np.std(estimates) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.1)
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / 20


@given(st.lists(st.integers(1, 79), max_size=6, unique=True))
def test_the_partition_into_row_groups_does_not_matter(parts):
    masks, outcomes, _ = planted(80)
    whole, pieces = influences(masks, outcomes), influences(masks, outcomes, sorted(parts))
    np.testing.assert_allclose(pieces.influence, whole.influence, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pieces.standard_error, whole.standard_error, rtol=0, atol=1e-12)
    again = influences(masks, outcomes, sorted(parts))
    np.testing.assert_array_equal(again.influence, pieces.influence)
    np.testing.assert_array_equal(again.standard_error, pieces.standard_error)


@pytest.mark.parametrize("offset", [1e6, -1e6, 1e9])
def test_a_large_common_offset_costs_no_precision(offset):
    masks, outcomes, _ = planted(100)
    shifted = outcomes + offset
    found = influences(masks, shifted)
    expected = influences(masks, shifted - offset)
    np.testing.assert_allclose(found.influence, expected.influence, rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-9)


def test_a_constant_outcome_has_no_influence_and_no_error():
    masks = random_masks(30, 6)
    found = influences(masks, np.full((30, 2), 0.1))
    assert (found.influence == 0).all()
    assert (found.standard_error == 0).all()


def test_a_helpful_class_has_a_positive_influence():
    masks = random_masks(30, 6)
    found = influences(masks, masks[:, [2]] * 3.0)
    assert found.influence[2, 0] == pytest.approx(3.0)
    assert found.standard_error[2, 0] == 0
    assert (np.delete(found.influence[:, 0], 2) < 1).all()


@pytest.mark.parametrize(
    ("column", "models"), [([0] * 6, 0), ([1] + [0] * 5, 1), ([1] * 5 + [0], 5), ([1] * 6, 6)]
)
def test_a_class_in_too_many_or_too_few_subsets_is_refused_by_name(column, models):
    masks = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]], bool)
    masks[:, 1] = column
    with pytest.raises(UserError) as mistake:
        influences(masks, np.ones((6, 1)))
    assert str(mistake.value) == (
        f"class 'class 1' is in the subsets of {models} of 6 models, but both sides need at least "
        f"2; raise `models`."
    )


def test_two_models_on_each_side_are_enough():
    masks = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    found = influences(masks, np.array([[1.0], [3.0], [0.0], [0.0]]))
    np.testing.assert_allclose(found.influence[:, 0], [2, -2])
    np.testing.assert_allclose(found.standard_error[:, 0], [1, 1])


def write_summary(
    path: Path, masks: np.ndarray, outcomes: np.ndarray, group: int | None = None
) -> Path:
    columns = {
        "model": pa.array(range(len(masks)), pa.int64()),
        "mask": pa.array([pack(mask) for mask in masks], pa.binary(-(-masks.shape[1] // 8))),
        "raw_margin": list_column(outcomes.astype(np.float32)),
        "is_correct": list_column(outcomes > 0),
        "accuracy": (outcomes > 0).mean(axis=1),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.fixture
def summary(tmp_path) -> Path:
    masks, outcomes, _ = planted(150, 9)
    return write_summary(tmp_path / "summary.parquet", masks, outcomes, 64)


def test_the_last_column_is_on_the_whole_target(summary):
    masks, outcomes, _ = planted(150, 9)
    found = estimate(summary, "difference_in_means", "raw_margin", names(9))
    outcomes = outcomes.astype(np.float32).astype(np.float64)
    expected = influences(masks, np.hstack([outcomes, outcomes.mean(axis=1, keepdims=True)]))
    assert found.influence.shape == (9, 6)
    np.testing.assert_allclose(found.influence, expected.influence, atol=1e-12)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, atol=1e-12)
    np.testing.assert_allclose(found.influence[:, -1], found.influence[:, :-1].mean(axis=1))


def test_correctness_averages_to_accuracy(summary):
    per_example = estimate(summary, "difference_in_means", "is_correct", names(9))
    scalar = estimate(summary, "difference_in_means", "accuracy", names(9))
    assert scalar.influence.shape == (9, 1)
    np.testing.assert_allclose(per_example.influence[:, -1], scalar.influence[:, 0], atol=1e-12)
    np.testing.assert_allclose(
        per_example.standard_error[:, -1], scalar.standard_error[:, 0], atol=1e-12
    )


@pytest.mark.parametrize("group", [1, 64, 149, 150])
def test_influences_do_not_depend_on_the_row_groups_of_the_file(tmp_path, summary, group):
    masks, outcomes, _ = planted(150, 9)
    other = write_summary(tmp_path / "other.parquet", masks, outcomes, group)
    expected, found = (
        estimate(path, "difference_in_means", "raw_margin", names(9)) for path in (summary, other)
    )
    np.testing.assert_allclose(found.influence, expected.influence, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=0, atol=1e-12)
    if group == 64:
        np.testing.assert_array_equal(found.influence, expected.influence)
        np.testing.assert_array_equal(found.standard_error, expected.standard_error)


@pytest.mark.parametrize("classes", [8, 17])
def test_masks_of_another_number_of_classes_are_refused(summary, classes):
    with pytest.raises(
        UserError, match=f"masks of 16 bits, but the .* {classes} classes; summarize"
    ):
        estimate(summary, "difference_in_means", "raw_margin", names(classes))


def test_a_class_that_no_mask_has_is_refused(summary):
    with pytest.raises(UserError, match="class 'class 9' is in the subsets of 0 of 150 models"):
        estimate(summary, "difference_in_means", "raw_margin", names(10))


def test_an_empty_summary_is_refused(tmp_path):
    path = tmp_path / "empty.parquet"
    pq.write_table(
        pa.table({"mask": pa.array([], pa.binary(1)), "accuracy": pa.array([], "f8")}), path
    )
    with pytest.raises(
        UserError, match=r"empty.parquet: holds no models; run the workflow again\."
    ):
        estimate(path, "difference_in_means", "accuracy", names(3))


def test_a_summary_damaged_in_the_middle_is_refused(summary):
    data = bytearray(summary.read_bytes())
    data[4:3000] = b"\xff" * 2996
    summary.write_bytes(data)
    with pytest.raises(UserError, match=r"summary\.parquet: not a whole Parquet file"):
        estimate(summary, "difference_in_means", "raw_margin", names(9))


@pytest.mark.parametrize("outcome", ["raw_margin", "accuracy"])
def test_influences_survive_the_file(summary, tmp_path, outcome):
    found = estimate(summary, "difference_in_means", outcome, names(9))
    path = tmp_path / "influences.parquet"
    write_influences(found, names(9), path, '{"code": "abc"}')
    rows = pq.read_table(path)
    assert read_provenance(path) == {"code": "abc"}
    assert rows["unit"].to_pylist() == list(range(9))
    assert rows["name"].to_pylist() == names(9)
    np.testing.assert_array_equal(rows["influence"], found.influence[:, -1])
    np.testing.assert_array_equal(rows["standard_error"], found.standard_error[:, -1])
    if outcome == "accuracy":
        assert rows["example_influence"].to_pylist() == [[]] * 9
    else:
        per_example = found.influence[:, :-1].astype(np.float32)
        np.testing.assert_array_equal(matrix(rows["example_influence"]), per_example)
        errors = found.standard_error[:, :-1].astype(np.float32)
        np.testing.assert_array_equal(matrix(rows["example_standard_error"]), errors)


def ranking(folder: Path, values: list[float]) -> pa.Table:
    column = np.array(values)[:, None]
    found = Influences(np.hstack([-column, column]), np.hstack([column, np.abs(column) / 2]))
    write_influences(found, names(len(values)), folder / "influences.parquet", "{}")
    write_ranking(folder / "influences.parquet", folder / "ranking.parquet", "{}")
    return pq.read_table(folder / "ranking.parquet")


def test_the_most_helpful_class_has_rank_1_and_ties_go_by_class(tmp_path):
    rows = ranking(tmp_path, [0.5, -1.0, 2.0, 0.5, 2.0, -0.0, 0.0])
    assert rows.column_names == ["rank", "unit", "name", "influence", "standard_error"]
    assert rows["rank"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    assert rows["unit"].to_pylist() == [2, 4, 0, 3, 5, 6, 1]
    assert rows["name"].to_pylist()[0] == "class 2"
    assert rows["influence"].to_pylist() == [2, 2, 0.5, 0.5, 0, 0, -1]
    assert rows["standard_error"].to_pylist() == [1, 1, 0.25, 0.25, 0, 0, 0.5]


def test_ties_go_by_class_among_many(tmp_path):
    values = [float(index % 3) for index in range(100)]
    expected = sorted(range(100), key=lambda index: (-values[index], index))
    assert ranking(tmp_path, values)["unit"].to_pylist() == expected
