import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chisquare
from tests.conftest import recipe_values

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import Subset
from transfer_influence.errors import UserError
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import (
    balanced_spread,
    block_models,
    draw_mask,
    imported_models,
    listed_mask,
    masks_stamp,
    open_masks,
    own_test_examples,
    pack,
    read_units,
    source_models,
    training_examples,
    unpack,
)

HALF = Subset(fraction=0.5)
NAMES = list(map(str, range(20)))
STAGE = SourceStage(
    seed=3, subset=HALF, architecture=Architecture(), recipe=Recipe(**recipe_values())
)
percents = st.integers(1, 99)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (0, [0, 1, 2, 3, 5, 9, 11, 12, 16, 17]),
        (1, [0, 1, 2, 3, 6, 8, 10, 11, 18, 19]),
    ],
)
def test_subsets_never_change_as_they_are_part_of_every_result(model, kept):
    assert np.flatnonzero(draw_mask(0, model, 20, HALF)).tolist() == kept


@given(percents, st.integers(2, 1000), st.integers(0, 2**40))
@example(29, 100, 0)  # 0.29 × 100 is 28.999999999999996
@example(70, 90, 0)
def test_a_fraction_gives_exactly_its_share_rounded_down(percent, classes, model):
    subset, size = Subset(fraction=percent / 100), percent * classes // 100
    assert subset.size(classes) == size
    if size:
        assert draw_mask(0, model, classes, subset).sum() == size


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_count_gives_exactly_that_many(count, more):
    assert draw_mask(1, 0, count + more, Subset(count=count)).sum() == count


@given(percents)
def test_least_units_is_the_first_number_of_classes_that_a_fraction_can_split(percent):
    subset = Subset(fraction=percent / 100)
    splits = [1 <= subset.size(classes) < classes for classes in range(2, 201)]
    assert subset.least_units == splits.index(True) + 2
    assert all(splits[splits.index(True) :])


def test_every_subset_is_equally_likely():
    names = {chosen: index for index, chosen in enumerate(itertools.combinations(range(7), 3))}
    drawn = [
        tuple(np.flatnonzero(draw_mask(11, model, 7, Subset(count=3))).tolist())
        for model in range(7000)
    ]
    counts = np.bincount([names[subset] for subset in drawn], minlength=len(names))
    assert chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize(
    ("subset", "classes", "size"),
    [(Subset(count=4), 4, 4), (Subset(count=9), 4, 9), (Subset(fraction=0.2), 4, 0)],
)
def test_a_subset_of_none_or_all_of_the_units_is_refused(subset, classes, size):
    with pytest.raises(UserError, match=f"source.subset: {size} of {classes} units; choose"):
        draw_mask(0, 0, classes, subset)


def test_models_do_not_depend_on_which_others_are_made_with_them():
    many = source_models(STAGE, range(40), NAMES)
    (alone,) = source_models(STAGE, [37], NAMES)
    assert alone.model == many[37].model == 37
    assert alone.seeds == many[37].seeds
    np.testing.assert_array_equal(alone.mask, many[37].mask)


def test_a_models_seeds_come_from_the_source_stage():
    (model,) = source_models(STAGE, [5], NAMES)
    assert model.seeds == TrainingSeeds.from_stream(stream(3, Stage.SOURCE, 5))


def test_the_recipe_does_not_change_the_subsets():
    other = STAGE.model_copy(update={"recipe": Recipe(**recipe_values(epochs=9))})
    for one, two in zip(
        source_models(STAGE, range(9), NAMES), source_models(other, range(9), NAMES), strict=True
    ):
        np.testing.assert_array_equal(one.mask, two.mask)


def test_packed_masks_begin_with_the_lowest_bit():
    assert pack(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], bool)) == b"\x01\x02"


@given(
    st.integers(1, 70).flatmap(
        lambda classes: st.lists(
            st.lists(st.booleans(), min_size=classes, max_size=classes), min_size=1, max_size=9
        )
    )
)
def test_packing_loses_nothing(rows):
    masks = np.array(rows, bool)
    packed = [pack(mask) for mask in masks]
    assert {len(one) for one in packed} == {-(-masks.shape[1] // 8)}
    np.testing.assert_array_equal(unpack(packed, masks.shape[1]), masks)


@given(st.lists(st.booleans(), min_size=4, max_size=4), st.lists(st.integers(0, 3), max_size=30))
def test_a_mask_of_classes_keeps_their_examples(mask, labels):
    expected = [index for index, label in enumerate(labels) if mask[label]]
    for keeps in (training_examples, own_test_examples):
        found = keeps(np.array(mask), "class", np.array(labels, np.int64))
        assert found.tolist() == expected
        assert found.dtype == np.int64


def test_a_mask_of_examples_keeps_these_and_all_test_examples():
    mask, labels = np.array([False, True, True, False]), np.array([0, 0, 1, 1])
    assert training_examples(mask, "example", labels).tolist() == [1, 2]
    assert own_test_examples(mask, "example", np.array([1, 0, 1])).tolist() == [0, 1, 2]


PAIRS = Subset(sampling="complement_pairs")


@pytest.mark.parametrize("units", [20, 21])
def test_models_of_a_pair_see_opposite_halves(units):
    for model in range(0, 40, 2):
        first, second = (draw_mask(3, number, units, PAIRS) for number in (model, model + 1))
        assert (first != second).all()
        assert first.sum() == units // 2
        # The even model is the one that is drawn, as without pairs.
        assert (first == draw_mask(3, model, units, HALF)).all()
    assert len({draw_mask(3, model, units, PAIRS).tobytes() for model in range(40)}) == 40


BALANCED = Subset(sampling="balanced")


@pytest.mark.parametrize(("units", "models"), [(3, 6), (20, 38), (23, 46), (40, 78)])
def test_units_of_a_block_are_together_equally_often(units, models):
    assert block_models(units) == models
    for block in range(3):
        numbers = range(block * models, (block + 1) * models)
        masks = np.array([draw_mask(3, number, units, BALANCED) for number in numbers])
        together = masks.T.astype(int) @ masks
        # Each unit is in half of the subsets; any two in just under a quarter.
        expected = np.full((units, units), models // 4 if models % 4 == 0 else (models - 2) // 4)
        np.fill_diagonal(expected, models // 2)
        np.testing.assert_array_equal(together, expected)
        assert (masks[: models // 2] != masks[models // 2 :]).all()
        assert masks.any(axis=1).all()
        assert not masks.all(axis=1).any()


def test_balanced_subsets_are_halves_where_there_is_a_matrix_of_that_order():
    assert {draw_mask(0, model, 20, BALANCED).sum() for model in range(200)} == {10}
    sizes = [draw_mask(0, model, 997, BALANCED).sum() for model in range(200)]
    assert np.std(sizes) == pytest.approx(balanced_spread(997), abs=0.1)
    assert balanced_spread(20) == 0
    assert np.mean(sizes) == pytest.approx(498.5, abs=0.3)


def test_blocks_differ_and_half_a_block_is_no_half_of_each_unit_by_design():
    first, second = (
        [draw_mask(3, 38 * block + i, 20, BALANCED) for i in range(38)] for block in (0, 1)
    )
    assert not {mask.tobytes() for mask in first} & {mask.tobytes() for mask in second}
    # With fixed signs, one unit would be in none of the first half.
    assert np.sum(first[:19], axis=0).min() >= 3


def test_balanced_subsets_never_change_as_they_are_part_of_every_result():
    assert np.flatnonzero(draw_mask(0, 40, 20, BALANCED)).tolist() == [
        0,
        2,
        4,
        7,
        11,
        12,
        13,
        15,
        16,
        19,
    ]


def test_balanced_subsets_of_another_share_are_refused():
    with pytest.raises(ValidationError, match=r"balanced are halves; set `fraction` to 0\.5"):
        Subset(sampling="balanced", fraction=0.25)


def test_a_subset_may_have_its_own_seed():
    own = Subset(fraction=0.5, seed=8)
    assert (draw_mask(3, 1, 20, own) == draw_mask(8, 1, 20, HALF)).all()
    assert (draw_mask(3, 1, 20, own) != draw_mask(3, 1, 20, HALF)).any()


ANIMALS = ["cat", "dog", "eel", "fox", "gnu"]


@pytest.mark.parametrize(
    ("name", "content", "units"),
    [
        ("list.txt", "eel\n\n  cat \n", [2, 0]),
        ("list.txt", "4\n0\n", [4, 0]),
        ("list.csv", "dog\nfox\n", [1, 3]),
        ("list.csv", 'rank,unit,name\n1,3,"fox"\n2,4,gnu\n', [3, 4]),
        ("list.csv", "unit,influence\n2,0.5\n1,0.25\n", [2, 1]),
    ],
)
def test_units_are_listed_by_name_or_index(name, content, units, tmp_path):
    (tmp_path / name).write_text(content)
    found = read_units(tmp_path / name, ANIMALS)
    assert found.tolist() == units
    assert found.dtype == np.int64


@pytest.mark.parametrize("entries", [[1, 4], ["dog", "gnu"]])
def test_units_are_listed_in_an_array(entries, tmp_path):
    np.save(tmp_path / "list.npy", np.array(entries))
    assert read_units(tmp_path / "list.npy", ANIMALS).tolist() == [1, 4]


def test_names_come_before_indices(tmp_path):
    (tmp_path / "list.txt").write_text("7\n9\n")
    assert read_units(tmp_path / "list.txt", ["9", "8", "7", "6"]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.txt", "cat\ndgo\n", r"list.txt: 'dgo' is neither .*\(did you mean 'dog'\?\)"),
        ("list.txt", "1\n5\n", "list.txt: '5' is neither the name of one of the 5 units nor a num"),
        ("list.txt", "\n", "list.txt: lists no unit; write at least one"),
        ("list.txt", "cat\ndog\ncat\n", "list.txt: 'cat' is listed twice; remove one"),
        ("list.csv", "name,x\ncat,1\n\ndog,2\ncat,1\n", "list.csv: 'cat' is listed twice"),
        ("list.csv", "x,name\n1,cat\n2\n", "list.csv: not readable as a list of units"),
        ("list.npy", "cat", "list.npy: not readable as a list of units"),
        ("list.json", "[]", "list.json: not a .txt, .csv or .npy file"),
        ("none/list.txt", None, "list.txt: no such file; correct the path"),
    ],
)
def test_a_wrong_list_is_refused(name, content, sentence, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_units(tmp_path / name, ANIMALS)


def test_all_models_see_what_is_listed(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("dog\ngnu\n")
    masks = {"keep": [0, 1, 0, 0, 1], "drop": [1, 0, 1, 1, 0]}
    for key, mask in masks.items():
        stage = STAGE.model_copy(update={"subset": Subset(**{key: path})})
        models = source_models(stage, [0, 7], ANIMALS)
        assert [model.mask.tolist() for model in models] == [mask, mask]
        assert models[1].seeds == source_models(STAGE, [7], ANIMALS)[0].seeds


def test_a_list_that_leaves_too_little_is_refused(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("0\n1\n2\n3\n")
    assert listed_mask(Subset(keep=path), ANIMALS).sum() == 4
    with pytest.raises(
        UserError, match=r"list.txt: leaves 1 of 5 units to train on; keep at least 2"
    ):
        listed_mask(Subset(drop=path), ANIMALS)


MASKS = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float64])
def test_existing_models_have_the_masks_of_their_rows(kind, tmp_path):
    np.save(tmp_path / "masks.npy", MASKS.astype(kind))
    models = imported_models(tmp_path / "masks.npy", [2, 0], 3)
    assert [model.model for model in models] == [2, 0]
    assert [model.mask.tolist() for model in models] == [[True, True, False], [True, False, True]]
    assert models[0].mask.dtype == np.bool_
    assert models[0].seeds is None


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (None, "masks.npy: no such file; correct source.masks"),
        (MASKS[:2], "masks.npy: masks of 2 models, but 3 are asked for; lower `models`"),
        (MASKS[:, :2], "masks.npy: masks of 2 units, but the source data set has 3"),
        (MASKS[0], "masks.npy: not a table of numbers"),
        (MASKS.astype(str), "masks.npy: not a table of numbers"),
        (MASKS * 0.5, "masks.npy: row 0 has entries other than 0 and 1"),
        (MASKS * [[1], [0], [1]], "masks.npy: row 1 keeps 0 units, but a model needs at least 2"),
    ],
)
def test_wrong_masks_are_refused(masks, sentence, tmp_path):
    if masks is not None:
        np.save(tmp_path / "masks.npy", masks)
    with pytest.raises(UserError, match=sentence):
        imported_models(tmp_path / "masks.npy", [0, 1, 2], 3)


def test_masks_may_be_packed(tmp_path):
    masks = np.random.default_rng(0).random((3, 21)) < 0.5
    np.save(tmp_path / "masks.npy", np.packbits(masks, axis=1, bitorder="little"))
    found = imported_models(tmp_path / "masks.npy", [0, 2], 21)
    assert [model.mask.tolist() for model in found] == masks[[0, 2]].tolist()
    with pytest.raises(UserError, match="masks of 3 units, but the source data set has 25"):
        imported_models(tmp_path / "masks.npy", [0, 2], 25)


def test_a_stamp_of_masks_changes_with_the_masks_of_its_models_only(tmp_path):
    masks = np.random.default_rng(0).random((4, 9)) < 0.5
    np.save(tmp_path / "masks.npy", masks)
    before = masks_stamp(tmp_path / "masks.npy", [1, 2])
    masks[[0, 3]] ^= True
    np.save(tmp_path / "masks.npy", masks)
    assert masks_stamp(tmp_path / "masks.npy", [1, 2]) == before
    masks[2, 8] ^= True
    np.save(tmp_path / "masks.npy", masks)
    assert masks_stamp(tmp_path / "masks.npy", [1, 2]) != before


def test_pairs_may_be_given_by_their_number_of_units():
    pairs = Subset(count=10, sampling="complement_pairs")
    assert (draw_mask(0, 0, 20, pairs) != draw_mask(0, 1, 20, pairs)).all()
    assert draw_mask(0, 0, 21, pairs).sum() == 10
    for units in (19, 22):
        with pytest.raises(
            UserError, match=f"complement_pairs are halves, but 10 of {units} units"
        ):
            draw_mask(0, 0, units, pairs)


def test_no_name_is_suggested_where_there_are_very_many(tmp_path):
    (tmp_path / "list.txt").write_text("dgo\n")
    with pytest.raises(UserError, match="a number from 0 to 10000; correct it"):
        read_units(tmp_path / "list.txt", ["dog", *map(str, range(10_000))])


def test_masks_in_another_format_are_refused(tmp_path):
    (tmp_path / "masks.npy").write_text("1 0 1")
    with pytest.raises(UserError, match=r"masks.npy: not readable as \.npy"):
        open_masks(tmp_path / "masks.npy", 1)
