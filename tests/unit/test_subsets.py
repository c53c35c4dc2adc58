import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import chisquare
from tests.conftest import recipe_values

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import Subset
from transfer_influence.errors import UserError
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import draw_mask, examples_of, pack, source_models, unpack

HALF = Subset(fraction=0.5)
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
def test_least_classes_is_the_first_number_of_classes_that_a_fraction_can_split(percent):
    subset = Subset(fraction=percent / 100)
    splits = [1 <= subset.size(classes) < classes for classes in range(2, 201)]
    assert subset.least_classes == splits.index(True) + 2
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
def test_a_subset_of_none_or_all_of_the_classes_is_refused(subset, classes, size):
    with pytest.raises(UserError, match=f"source.subset: {size} of {classes} classes; choose"):
        draw_mask(0, 0, classes, subset)


def test_models_do_not_depend_on_which_others_are_made_with_them():
    many = source_models(STAGE, range(40), 20)
    (alone,) = source_models(STAGE, [37], 20)
    assert alone.model == many[37].model == 37
    assert alone.seeds == many[37].seeds
    np.testing.assert_array_equal(alone.mask, many[37].mask)


def test_a_models_seeds_come_from_the_source_stage():
    (model,) = source_models(STAGE, [5], 20)
    assert model.seeds == TrainingSeeds.from_stream(stream(3, Stage.SOURCE, 5))


def test_the_recipe_does_not_change_the_subsets():
    other = STAGE.model_copy(update={"recipe": Recipe(**recipe_values(epochs=9))})
    for one, two in zip(
        source_models(STAGE, range(9), 20), source_models(other, range(9), 20), strict=True
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
def test_examples_of_a_mask_are_those_whose_class_it_keeps(mask, labels):
    expected = [index for index, label in enumerate(labels) if mask[label]]
    found = examples_of(np.array(mask), np.array(labels, np.int64))
    assert found.tolist() == expected
    assert found.dtype == np.int64
