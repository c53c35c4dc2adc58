"""The division of a target's test images, and the means over its parts."""

import numpy as np
import pytest

from transfer_influence.outcomes.test_images import TestImages

LABELS = np.array([0] * 5 + [1] * 4 + [3] + [4] * 2)  # no images of class 2, one of class 3


def test_a_share_of_each_class_proves_and_the_rest_ranks():
    images = TestImages.divided(LABELS, 0.5, seed=0)
    assert np.bincount(LABELS[images.proving], minlength=5).tolist() == [3, 2, 0, 0, 1]
    assert np.bincount(LABELS[images.ranking], minlength=5).tolist() == [2, 2, 0, 1, 1]
    assert sorted([*images.proving, *images.ranking]) == list(range(len(LABELS)))


def test_the_division_follows_the_seed_alone():
    labels = np.repeat(np.arange(10), 20)
    first, same, other = (TestImages.divided(labels, 0.5, seed).proves for seed in (3, 3, 4))
    assert (first == same).all()
    assert (first != other).any()


def gain(fraction: float, seed: int) -> float:
    """What the removal of the 5 classes that seem most harmful changes, where none has an effect.

    A class has other effects on each of 25 images, which are 0 on average over all images.
    """
    rng = np.random.default_rng(seed)
    effects = rng.normal(size=(20, 25))
    images = TestImages.divided(np.arange(25) % 5, fraction, seed)
    masks = np.array([rng.permutation(20) < 10 for _ in range(200)])
    whole = images.means(masks @ effects, images.ranking)[:, -1]
    influence = [whole[masks[:, unit]].mean() - whole[~masks[:, unit]].mean() for unit in range(20)]
    removed = np.argsort(influence)[:5]
    return -images.means(effects[removed], images.proving)[:, -1].sum()


def test_images_that_rank_flatter_and_images_that_prove_do_not():
    divided = [gain(0.5, seed) for seed in range(300)]
    same = [gain(0, seed) for seed in range(300)]
    assert abs(np.mean(divided)) < 3.3 * np.std(divided) / np.sqrt(300)
    assert np.mean(same) > 10 * np.std(same) / np.sqrt(300)


def test_without_a_division_all_images_rank_and_prove():
    images = TestImages.divided(LABELS, 0, seed=0)
    assert images.ranking.tolist() == images.proving.tolist() == list(range(len(LABELS)))


@pytest.mark.parametrize("accuracy", ["overall", "per_class"])
def test_means_are_over_the_chosen_images(accuracy):
    outcomes = np.random.default_rng(0).normal(size=(3, len(LABELS))).astype(np.float32)
    chosen = np.array([0, 2, 5, 6, 7, 9])
    means = TestImages(LABELS, np.zeros(len(LABELS), bool), accuracy).means(outcomes, chosen)
    values = outcomes.astype(np.float64)
    expected = [values[:, [0, 2]].mean(axis=1), values[:, 5:8].mean(axis=1), values[:, 9]]
    np.testing.assert_allclose(means[:, [0, 1, 3]].T, expected)
    assert (means[:, [2, 4]] == 0).all()
    whole = values[:, chosen].mean(axis=1) if accuracy == "overall" else np.mean(expected, axis=0)
    np.testing.assert_allclose(means[:, -1], whole)


def test_accuracies_are_over_the_chosen_images():
    correct = np.array([1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1], bool)
    chosen = np.array([0, 1, 5, 6, 7, 9])
    images = TestImages(LABELS, np.zeros(len(LABELS), bool))
    overall, of_classes = images.accuracies(correct, chosen, 5)
    assert overall == 0.5
    np.testing.assert_allclose(of_classes, [0.5, 2 / 3, np.nan, 0, np.nan])
    images = TestImages(LABELS, np.zeros(len(LABELS), bool), "per_class")
    assert images.accuracies(correct, chosen, 5)[0] == pytest.approx((0.5 + 2 / 3) / 3)
