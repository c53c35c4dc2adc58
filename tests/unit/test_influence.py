from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr, ttest_ind, ttest_rel
from tests.unit.measured import (
    ROOM,
    balanced_masks,
    complement_pairs,
    measured,
    names,
    planted,
    random_masks,
)

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.errors import UserError
from transfer_influence.influence.estimation import estimate
from transfer_influence.influence.estimators import DifferenceInMeans, Fit, joined
from transfer_influence.influence.measurements import Outcomes, read_measurements
from transfer_influence.influence.ranking import rank_certainty, write_ranking
from transfer_influence.influence.ridge import Ridge
from transfer_influence.outcomes.tables import list_column, matrix, write_table
from transfer_influence.outcomes.test_images import TestImages
from transfer_influence.provenance import read_provenance
from transfer_influence.subsets import block_models, pack

LABELS = np.array([0, 1, 1, 3, 0])  # of the target's images; class 2 has none


def influences(masks: np.ndarray, outcomes: np.ndarray, parts: list[int] | None = None) -> Fit:
    """Influences of outcomes that arrive in pieces which end at `parts`."""
    data = measured(masks, outcomes)
    pieces = np.split(np.arange(len(masks)), parts or [])
    whole = Outcomes(outcomes.shape[1], lambda: ((rows, outcomes[rows]) for rows in pieces))
    return joined(DifferenceInMeans(data, ROOM).fit(whole))


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


def test_two_models_on_each_side_are_enough():
    masks = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], bool)
    found = influences(masks, np.array([[1.0], [3.0], [0.0], [0.0]]))
    np.testing.assert_allclose(found.influence[:, 0], [2, -2])
    np.testing.assert_allclose(found.standard_error[:, 0], [1, 1])


def write_summary(
    path: Path,
    masks: np.ndarray,
    outcomes: np.ndarray,
    group: int | None = None,
    models: np.ndarray | None = None,
) -> Path:
    columns = {
        "model": pa.array(np.arange(len(masks)) if models is None else models, pa.int64()),
        "mask": pa.array([pack(mask) for mask in masks], pa.binary(-(-masks.shape[1] // 8))),
        "raw_margin": list_column(outcomes.astype(np.float32)),
        "is_correct": list_column(outcomes > 0),
        "accuracy": (outcomes > 0).mean(axis=1),
        "auroc": pa.nulls(len(masks), pa.float64()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.fixture
def summary(tmp_path) -> Path:
    masks, outcomes, _ = planted(150, 9)
    return write_summary(tmp_path / "summary.parquet", masks, outcomes, 64)


def whole(labels: np.ndarray) -> TestImages:
    return TestImages.divided(labels, 0, 0)


def read(path: Path, outcome: str = "raw_margin", classes: int = 9, labels: np.ndarray = LABELS):
    return read_measurements(path, outcome, names(classes), whole(labels), 4)


def stage(**changes) -> InfluenceStage:
    settings = {
        "seed": 0,
        "proof_fraction": 0,
        "accuracy": "overall",
        "unit": "class",
        "estimator": "difference_in_means",
        "outcome": "raw_margin",
        "intervals": "closed_form",
        "bootstrap_replicates": 100,
        "held_out": 0.2,
        "largest_table_gb": 1,
    }
    return InfluenceStage(**{**settings, **changes})


def table(summary: Path, memory_gb: float = 4, **changes) -> pa.Table:
    settings = stage(**changes)
    path = summary.with_name("influences.parquet")
    data = read(summary, settings.outcome)
    estimate(data, settings, names(9), memory_gb, path, '{"code": "abc"}')
    return pq.read_table(path)


REFERENCE_RTOL = 1e-6


def reference(masks: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Influence and standard error (classes, columns), class by class, in float64."""
    influence, error = [], []
    for kept in masks.T:
        one, other = outcomes[kept], outcomes[~kept]
        influence.append(one.mean(axis=0) - other.mean(axis=0))
        variances = one.var(axis=0, ddof=1) / len(one), other.var(axis=0, ddof=1) / len(other)
        error.append(np.sqrt(sum(variances)))
    return np.array(influence), np.array(error)


def test_the_table_says_what_a_reference_says(summary):
    masks, outcomes, _ = planted(150, 9)
    outcomes = outcomes.astype(np.float32).astype(np.float64)
    rows = table(summary)
    for part, columns in {
        "": outcomes.mean(axis=1, keepdims=True),
        "class_": np.array([outcomes[:, label == LABELS].mean(axis=1) for label in (0, 1, 3)]).T,
        "example_": outcomes,
    }.items():
        influence, error = reference(masks, columns)
        found = rows[f"{part}influence"], rows[f"{part}standard_error"]
        if part:
            found = tuple(matrix(column) for column in found)
        else:
            found = tuple(column.to_numpy()[:, None] for column in found)
        if part == "class_":
            found = tuple(column[:, [0, 1, 3]] for column in found)
        # Lists are float32.
        np.testing.assert_allclose(found[0], influence, rtol=REFERENCE_RTOL, atol=1e-7)
        np.testing.assert_allclose(found[1], error, rtol=REFERENCE_RTOL)


def test_a_target_class_without_images_has_no_influence(summary):
    assert (matrix(table(summary)["class_influence"])[:, 2] == 0).all()


def test_intervals_and_significance_are_those_of_a_t_test(summary):
    masks, outcomes, _ = planted(150, 9)
    whole = outcomes.astype(np.float32).astype(np.float64).mean(axis=1)
    rows = table(summary).to_pandas()
    p_values = []
    for row in rows.itertuples():
        sides = whole[masks[:, row.unit]], whole[~masks[:, row.unit]]
        ends = ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
        assert (row.low, row.high) == pytest.approx((ends.low, ends.high), rel=1e-6)
        p_values.append(ttest_ind(*sides, equal_var=True).pvalue)
    order = np.argsort(p_values)
    raised = [p_values[unit] * 9 / (place + 1) for place, unit in enumerate(order)]
    for place, unit in enumerate(order):
        assert rows["q_value"][unit] == pytest.approx(min([1, *raised[place:]]))
    assert (rows["significant"] == (rows["q_value"] <= 0.05)).all()
    assert 0 < rows["significant"].sum() < 9


def test_correctness_averages_to_accuracy(summary):
    per_example = table(summary, outcome="is_correct").to_pandas()
    scalar = table(summary, outcome="accuracy").to_pandas()
    for column in ("influence", "standard_error"):
        np.testing.assert_allclose(per_example[column], scalar[column], rtol=0, atol=1e-12)
    assert scalar["example_influence"].map(len).tolist() == [0] * 9
    assert scalar["class_influence"].map(len).tolist() == [0] * 9


def columns(rows: pa.Table) -> np.ndarray:
    return np.hstack(
        [
            np.stack([rows[name].to_numpy() for name in ("influence", "low", "high")], axis=1),
            matrix(rows["example_influence"]),
        ]
    )


@pytest.mark.parametrize("estimator", ["difference_in_means", "ridge", "lasso"])
@pytest.mark.parametrize(("group", "order"), [(1, 1), (149, 1), (64, -1)])
def test_row_groups_and_the_order_of_shards_do_not_matter(
    tmp_path, summary, estimator, group, order
):
    masks, outcomes, _ = planted(150, 9)
    models = np.arange(150)[::order]
    other = write_summary(tmp_path / "o.parquet", masks[models], outcomes[models], group, models)
    expected, found = (table(path, estimator=estimator) for path in (summary, other))
    np.testing.assert_allclose(columns(found)[:, :3], columns(expected)[:, :3], atol=1e-9)
    np.testing.assert_allclose(columns(found), columns(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["difference_in_means", "ridge"])
def test_small_memory_means_blocks_of_classes_and_the_same_numbers(estimator):
    masks, outcomes, _ = planted(90, 50, 30)
    data = measured(masks, outcomes)
    made = {
        "difference_in_means": lambda room: DifferenceInMeans(data, room),
        "ridge": lambda room: Ridge(data, room),
    }[estimator]
    blocks = list(made(200_000).fit(data.examples))
    assert len(blocks) > 1
    whole, pieces = joined(made(ROOM).fit(data.examples)), joined(iter(blocks))
    np.testing.assert_allclose(pieces.influence, whole.influence, rtol=0, atol=1e-12)
    np.testing.assert_allclose(pieces.standard_error, whole.standard_error, rtol=0, atol=1e-12)


def test_tables_that_would_be_too_large_hold_the_whole_target_only(summary):
    room = 9 * 4 * 8 / 1e9  # as much as 4 target classes take; 5 examples take more
    rows = table(summary, largest_table_gb=room)
    assert matrix(rows["class_influence"]).shape == (9, 4)
    assert rows["example_influence"].to_pylist() == [[]] * 9
    less = table(summary, largest_table_gb=0)
    assert less["class_influence"].to_pylist() == [[]] * 9
    assert less["influence"].equals(rows["influence"])


def test_masks_larger_than_memory_are_the_same(summary):
    masks = read(summary).masks
    from_file = read_measurements(summary, "raw_margin", names(9), whole(LABELS), 1e-9).masks
    assert isinstance(from_file.packed, np.memmap)
    np.testing.assert_array_equal(from_file.packed, masks.packed)


def write_pairs(path: Path, models: np.ndarray, classes: int = 9) -> Path:
    masks = complement_pairs(40, classes)[models]
    outcomes = np.random.default_rng(2).normal(size=(40, 5))[models]
    return write_summary(path, masks, outcomes, models=models)


def test_complement_pairs_are_recognised_whatever_their_order(tmp_path):
    order = np.random.default_rng(0).permutation(40)
    data = read(write_pairs(tmp_path / "pairs.parquet", order))
    assert data.design == "complement_pairs"
    np.testing.assert_array_equal(data.models, np.arange(40))
    np.testing.assert_array_equal(data.groups, np.arange(40) // 2)


def test_a_model_without_its_partner_is_left_out(tmp_path):
    data = read(write_pairs(tmp_path / "pairs.parquet", np.delete(np.arange(40), 7)))
    np.testing.assert_array_equal(data.models, np.delete(np.arange(40), [6, 7]))
    chunks = list(data.examples.chunks())
    np.testing.assert_array_equal(np.concatenate([models for models, _ in chunks]), np.arange(38))
    outcomes = np.random.default_rng(2).normal(size=(40, 5))[data.models]
    np.testing.assert_array_equal(
        np.concatenate([values for _, values in chunks]), outcomes.astype(np.float32)
    )


def test_too_few_pairs_that_are_whole_are_refused(tmp_path):
    models = np.array([0, 1, *range(2, 40, 2)])
    with pytest.raises(UserError, match=r"'class 0' is in the subsets of 1 of 2 models, .*; raise"):
        read(write_pairs(tmp_path / "pairs.parquet", models))
    whole = read(write_pairs(tmp_path / "pairs.parquet", np.sort([*models, 3])))
    np.testing.assert_array_equal(whole.models, [0, 1, 2, 3])


def test_models_that_are_no_complements_are_no_pairs(summary):
    assert read(summary).design == "uniform"


def test_pairs_are_compared_by_a_paired_t_test():
    masks = complement_pairs(60, 8)
    outcomes = masks @ np.random.default_rng(3).normal(size=(8, 3))
    outcomes += np.random.default_rng(4).normal(size=(60, 3))
    found = influences(masks, outcomes, [7, 30])
    for unit in range(8):
        kept = masks[:, unit]
        test = ttest_rel(outcomes[kept], outcomes[~kept])
        np.testing.assert_allclose(
            found.influence[unit] / found.standard_error[unit], test.statistic
        )
        np.testing.assert_allclose(found.freedom[unit], test.df)


@pytest.mark.parametrize("classes", [8, 11])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("room", [ROOM, 60_000])
def test_differences_of_balanced_subsets_are_the_least_squares_fit(classes, blocks, room):
    masks = balanced_masks(blocks * block_models(classes), classes)
    rng = np.random.default_rng(3)
    outcomes = masks @ rng.normal(size=(classes, 3)) + rng.normal(size=(len(masks), 3)) + 5
    data = measured(masks, outcomes)
    assert data.design == "balanced"
    fits = list(DifferenceInMeans(data, room).fit(Outcomes.of(outcomes)))
    assert (len(fits) > 1) == (room < ROOM and classes > 8)
    found = joined(iter(fits))
    design = np.column_stack([masks, np.ones(len(masks))])
    for column in range(3):
        effects, _, rank, _ = np.linalg.lstsq(design, outcomes[:, column])
        residuals = outcomes[:, column] - design @ effects
        kept, rest = outcomes[:, column] * masks.T, outcomes[:, column] * ~masks.T
        means = kept.sum(axis=1) / masks.sum(axis=0), rest.sum(axis=1) / (~masks).sum(axis=0)
        np.testing.assert_allclose(found.influence[:, column], means[0] - means[1])
        if classes == 8:  # as many columns as classes: each comes in for the others
            expected = (effects[:-1] - effects[:-1].mean()) * 8 / 7
            np.testing.assert_allclose(found.influence[:, column], expected)
        noise = np.sqrt((residuals**2).sum() / (len(masks) - rank))
        np.testing.assert_allclose(
            found.standard_error[:, column], noise * 2 / np.sqrt(len(masks)), rtol=1e-6
        )
        assert (found.freedom[:, column] == len(masks) - rank).all()


def test_balanced_subsets_are_recognised_by_whole_blocks(tmp_path):
    masks = balanced_masks(60, 8)
    outcomes = np.random.default_rng(2).normal(size=(60, 5))

    def design(masks, models):
        path = write_summary(tmp_path / "masks.parquet", masks, outcomes[models], models=models)
        return read(path, classes=8).design

    assert design(masks[14:42], np.arange(14, 42)) == "balanced"
    assert design(masks[14:41], np.arange(14, 41)) == "uniform"
    exchanged = masks[:28].copy()
    exchanged[[0, 14]], exchanged[[7, 21]] = exchanged[[14, 0]], exchanged[[21, 7]]
    assert design(exchanged, np.arange(28)) == "balanced"  # whatever their order in a half
    spoiled = masks[:28].copy()
    spoiled[[0, 7], 0] ^= True  # complements as before, but no longer balanced
    assert design(spoiled, np.arange(28)) == "uniform"


@pytest.mark.parametrize(
    ("column", "models"), [([0] * 6, 0), ([1] + [0] * 5, 1), ([1] * 5 + [0], 5), ([1] * 6, 6)]
)
def test_a_class_in_too_many_or_too_few_subsets_is_refused_by_name(tmp_path, column, models):
    masks = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]], bool)
    masks[:, 1] = column
    path = write_summary(tmp_path / "few.parquet", masks, np.ones((6, 5)))
    with pytest.raises(UserError) as mistake:
        read(path, classes=2)
    assert str(mistake.value) == (
        f"'class 1' is in the subsets of {models} of 6 models, but both sides need at least "
        f"2; raise `models`, or mend the masks."
    )


@pytest.mark.parametrize("classes", [8, 17])
def test_masks_of_another_number_of_classes_are_refused(summary, classes):
    with pytest.raises(
        UserError, match=f"masks of 16 bits, but the .* {classes} classes; summarize"
    ):
        read(summary, classes=classes)


def test_masks_of_more_classes_in_as_many_bytes_are_refused(tmp_path):
    masks, outcomes, _ = planted(40, 12)
    path = write_summary(tmp_path / "wide.parquet", masks, outcomes)
    with pytest.raises(UserError, match=r"wide\.parquet: masks have more classes than the 11 of"):
        read(path, classes=11)


def test_a_model_without_a_mask_is_refused(tmp_path):
    masks, outcomes, _ = planted(40, 8)
    path = write_summary(tmp_path / "null.parquet", masks, outcomes)
    rows = pq.read_table(path)
    place = rows.schema.get_field_index("mask")
    without = pa.array([None, *rows["mask"].to_pylist()[1:]], pa.binary(1))
    pq.write_table(rows.set_column(place, "mask", without), path)
    with pytest.raises(UserError, match=r"null\.parquet: masks of 0 bits, but"):
        read(path, classes=8)


def test_a_class_that_no_mask_has_is_refused(summary):
    with pytest.raises(UserError, match="'class 9' is in the subsets of 0 of 150 models"):
        read(summary, classes=10)


def test_outcomes_on_other_images_are_refused(summary):
    with pytest.raises(UserError, match=r"outcomes on 5 test images, but the target has 4; trans"):
        read(summary, labels=LABELS[:4])


def test_an_outcome_that_is_not_defined_is_refused(summary):
    with pytest.raises(UserError, match=r"auroc is not defined, as .*choose another"):
        read(summary, "auroc")


def test_an_outcome_that_is_not_finite_is_refused_by_its_model(tmp_path):
    masks, outcomes, _ = planted(150, 9)
    outcomes[77, 3] = np.inf
    path = write_summary(tmp_path / "infinite.parquet", masks, outcomes, 64)
    with pytest.raises(
        UserError, match=r"infinite.*: raw_margin of model 77 is not finite; del.*shard"
    ):
        read(path)


def test_a_model_that_stands_twice_is_refused(tmp_path):
    masks, outcomes, _ = planted(20, 9)
    models = np.array([*range(19), 4])
    path = write_summary(tmp_path / "twice.parquet", masks, outcomes, models=models)
    with pytest.raises(UserError, match=r"twice.*: model 4 stands twice; summarize again\."):
        read(path)


def test_an_empty_summary_is_refused(tmp_path):
    masks, outcomes, _ = planted(20, 9)
    path = write_summary(tmp_path / "empty.parquet", masks[:0], outcomes[:0])
    with pytest.raises(
        UserError, match=r"empty.parquet: holds no models; run the workflow again\."
    ):
        read(path)


def test_a_summary_damaged_in_the_middle_is_refused(summary):
    data = bytearray(summary.read_bytes())
    data[4:3000] = b"\xff" * 2996
    summary.write_bytes(data)
    with pytest.raises(UserError, match=r"summary\.parquet: not a whole Parquet file"):
        read(summary)


def test_influences_say_which_code_made_them(summary):
    table(summary)
    assert read_provenance(summary.with_name("influences.parquet"))["code"] == "abc"


def ranking(folder: Path, values: list[float], by_accuracy: list[float] | None = None) -> pa.Table:
    count = len(values)
    rows = {
        "unit": pa.array(range(count), pa.int32()),
        "name": names(count),
        "influence": values,
        "standard_error": [abs(value) / 2 for value in values],
        "low": [value - 1 for value in values],
        "high": [value + 1 for value in values],
        "q_value": [0.01] * count,
        "significant": [True] * count,
        "p_value": [0.01] * count,
        "accuracy_influence": by_accuracy or pa.nulls(count, pa.float64()),
        **dict.fromkeys(
            ("accuracy_standard_error", "accuracy_low", "accuracy_high"), [0.5] * count
        ),
    }
    write_table(pa.table(rows), folder / "influences.parquet", "{}")
    write_ranking(folder / "influences.parquet", folder / "ranking.parquet", "{}")
    return pq.read_table(folder / "ranking.parquet")


def test_the_most_helpful_class_has_rank_1_and_ties_go_by_class(tmp_path):
    by_accuracy = [0.0, 0.1, 0.2, 0.1, 0.5, -0.1, -0.2]
    rows = ranking(tmp_path, [0.5, -1.0, 2.0, 0.5, 2.0, -0.0, 0.0], by_accuracy)
    assert rows.column_names == [
        *("rank", "unit", "name", "influence", "standard_error"),
        *("low", "high", "p_value", "q_value", "significant"),
        *("accuracy_influence", "accuracy_standard_error", "accuracy_low", "accuracy_high"),
        *("rank_low", "rank_high", "share_top", "share_bottom", "accuracy_rank"),
    ]
    assert rows["rank"].to_pylist() == [1, 2, 3, 4, 5, 6, 7]
    assert rows["unit"].to_pylist() == [2, 4, 0, 3, 5, 6, 1]
    assert rows["name"].to_pylist()[0] == "class 2"
    assert rows["influence"].to_pylist() == [2, 2, 0.5, 0.5, 0, 0, -1]
    assert rows["standard_error"].to_pylist() == [1, 1, 0.25, 0.25, 0, 0, 0.5]
    assert rows["low"].to_pylist() == [1, 1, -0.5, -0.5, -1, -1, -2]
    assert rows["accuracy_rank"].to_pylist() == [2, 1, 5, 4, 6, 7, 3]


def test_without_influences_on_the_accuracy_there_is_no_place_by_them(tmp_path):
    assert ranking(tmp_path, [0.5, -1.0])["accuracy_rank"].null_count == 2


def test_intervals_of_ranks_hold_the_true_ones():
    rng = np.random.default_rng(0)
    effects = np.linspace(3, -3, 20)  # a third of an error apart
    held, top = [], []
    for _ in range(300):
        influence = effects + rng.normal(size=20)
        rows = pa.table({"low": influence - 1.96, "high": influence + 1.96})
        found = {name: column.to_numpy() for name, column in rank_certainty(rows).items()}
        rank = np.arange(1, 21)
        held.append((found["rank_low"] <= rank) & (rank <= found["rank_high"]))
        top.append(found["share_top"])
        assert found["share_top"].sum() == pytest.approx(2)
        assert found["share_bottom"].sum() == pytest.approx(2)
    assert np.mean(held) > 0.93
    assert np.mean(top, axis=0)[0] > 0.3 > 0.05 > np.mean(top, axis=0)[10]


def test_influences_without_errors_have_ranks_without_doubt():
    influence = np.array([3.0, -1.0, 2.0])
    found = rank_certainty(pa.table({"low": influence - 1e-9, "high": influence + 1e-9}))
    assert found["rank_low"].to_pylist() == found["rank_high"].to_pylist() == [1, 3, 2]
    unknown = rank_certainty(pa.table({"low": pa.nulls(3, pa.float64()), "high": influence}))
    assert all(column.null_count == 3 for column in unknown.values())


def test_ties_go_by_class_among_many(tmp_path):
    values = [float(index % 3) for index in range(100)]
    expected = sorted(range(100), key=lambda index: (-values[index], index))
    assert ranking(tmp_path, values)["unit"].to_pylist() == expected
