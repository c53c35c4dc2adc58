import numpy as np
import pytest
import torch
from conftest import random_images, recipe
from ffcv.fields.rgb_image import get_center_crop
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from transfer_influence.config.recipe import Augmentation
from transfer_influence.datasets.augmentation import (
    RATIO,
    SCALE,
    centre_boxes,
    random_boxes,
    resized_boxes,
    shift_and_flip,
    uniform,
    upsampled,
    views,
)
from transfer_influence.vision import torchvision

KEYS = st.integers(0, 2**64 - 1)


def chi_square(values: np.ndarray, bins: int) -> float:
    counts = np.bincount((values * bins).astype(int), minlength=bins)
    expected = len(values) / bins
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("key", [0, 1, 2**63 - 1])
@pytest.mark.parametrize("draw", [0, 1, 1000])
def test_uniform_is_uniform(key: int, draw: int) -> None:
    # 99 degrees of freedom: mean 99, standard deviation 14; the limit is 4.6 of them away.
    assert chi_square(uniform(key, np.arange(100_000), draw), 100) < 164


def test_neighbouring_keys_and_draws_are_unrelated() -> None:
    examples = np.arange(100_000)
    streams = [uniform(key, examples, draw) for key in (0, 1) for draw in (0, 1)]
    off_diagonal = np.corrcoef(streams) - np.eye(4)
    assert np.abs(off_diagonal).max() < 0.02  # 6 standard deviations
    assert abs(np.corrcoef(streams[0][1:], streams[0][:-1])[0, 1]) < 0.02


@given(KEYS, st.lists(st.integers(0, 2**40), max_size=20), st.integers(0, 2000))
def test_uniform_depends_on_its_arguments_alone(key: int, examples: list[int], draw: int) -> None:
    together = uniform(key, np.array(examples, np.int64), draw)
    alone = [uniform(key, np.array([example]), draw)[0] for example in examples]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < 1)).all()


@given(KEYS, st.integers(1, 3000), st.integers(1, 3000))
def test_random_boxes_lie_inside_the_image(key: int, height: int, width: int) -> None:
    top, left, tall, wide = random_boxes(key, np.arange(50), np.tile([height, width], (50, 1))).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall > 0).all()
    assert (wide > 0).all()
    assert (top + tall <= height).all()
    assert (left + wide <= width).all()


def test_random_boxes_keep_scale_and_ratio() -> None:
    _, _, tall, wide = random_boxes(7, np.arange(20_000), np.tile([1000, 1200], (20_000, 1))).T
    share, ratio = tall * wide / 1.2e6, wide / tall
    assert SCALE[0] * 0.99 < share.min() < 0.09
    assert share.max() <= 1
    assert RATIO[0] * 0.99 < ratio.min() < 0.76
    assert 1.32 < ratio.max() < RATIO[1] * 1.01


@pytest.mark.parametrize("size", [(64, 64), (40, 100), (30, 300)])
def test_random_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    from scipy.stats import ks_2samp

    torch.manual_seed(0)
    image = torch.empty(3, *size)
    draw = torchvision.transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = random_boxes(3, np.arange(4000), np.tile(size, (4000, 1)))
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3


def test_a_box_that_never_fits_falls_back_to_the_centre() -> None:
    # Four times as wide as allowed: all ten tries fail for nearly every example.
    boxes = random_boxes(0, np.arange(100), np.tile([10, 1000], (100, 1)))
    fallback = (boxes == [0, 493, 10, 13]).all(axis=1)
    assert fallback.mean() > 0.9


def test_padded_shifts_and_flips_cover_their_range_evenly() -> None:
    settings = recipe(augmentation=Augmentation(crop="padded", padding=2, flip=True))
    found = views(np.arange(50_000), np.tile([16, 16], (50_000, 1)), settings, key=11)
    for axis in range(2):
        values, counts = np.unique(found.shifts[:, axis], return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert np.abs(counts - 10_000).max() < 500
    assert abs(found.flips.mean() - 0.5) < 0.02


def test_the_test_view_has_nothing_random() -> None:
    settings = recipe(augmentation=Augmentation(crop="random_resized", flip=True), test_crop=0.5)
    found = views(np.arange(9), np.tile([20, 30], (9, 1)), settings, key=None)
    assert (found.boxes == [5, 10, 10, 10]).all()
    assert not found.shifts.any()
    assert not found.flips.any()


@given(st.integers(1, 5000), st.integers(1, 5000), st.floats(0.001, 1))
def test_centre_boxes_are_central_squares(height: int, width: int, share: float) -> None:
    top, left, tall, wide = centre_boxes(np.array([[height, width]]), share)[0]
    assert 1 <= tall == wide <= min(height, width)
    assert abs(tall - share * min(height, width)) <= 1
    assert 0 <= height - tall - 2 * top <= 1
    assert 0 <= width - wide - 2 * left <= 1


@given(st.integers(8, 2000), st.integers(8, 2000))
def test_centre_boxes_are_those_of_the_published_decoder(height: int, width: int) -> None:
    found = centre_boxes(np.array([[height, width]]), 224 / 256)[0]
    assert tuple(found) == get_center_crop(height, width, None, 224 / 256)


def test_centre_boxes_do_not_lose_a_pixel_to_rounding() -> None:
    assert centre_boxes(np.array([[100, 100]]), 0.29)[0].tolist() == [35, 35, 29, 29]


def test_shift_and_flip_by_hand() -> None:
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1).expand(1, 3, 3, 3).contiguous()
    moved = shift_and_flip(image, torch.tensor([[1, -1]]), torch.tensor([False]), 1)
    assert moved[0, :, :, 0].tolist() == [[0, 0, 0], [1, 2, 0], [4, 5, 0]]
    mirrored = shift_and_flip(image, torch.tensor([[1, -1]]), torch.tensor([True]), 1)
    assert mirrored[0, :, :, 0].tolist() == [[0, 0, 0], [0, 2, 1], [0, 5, 4]]


@pytest.mark.parametrize("box", [(0, 0, 40, 50), (3, 5, 30, 20), (7, 1, 8, 11), (39, 49, 1, 1)])
@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_resized_boxes_match_torch(box: tuple[int, int, int, int], resolution: int) -> None:
    images = torch.randint(0, 256, (2, 40, 50, 3), dtype=torch.uint8)
    top, left, tall, wide = box
    cut = images[:, top : top + tall, left : left + wide].permute(0, 3, 1, 2).float()
    expected = functional.interpolate(
        cut, (resolution, resolution), mode="bilinear", antialias=True
    )
    found = resized_boxes(images, torch.tensor([box, box]), resolution)
    assert found.is_contiguous()
    difference = found.permute(0, 3, 1, 2).float() - expected
    assert difference.abs().max() <= 0.51  # rounding


def test_a_box_of_the_right_size_is_copied_exactly() -> None:
    images = torch.randint(0, 256, (3, 20, 30, 3), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 16, 16], [4, 14, 16, 16], [1, 2, 16, 16]])
    found = resized_boxes(images, boxes, 16)
    for image, copy, (top, left, _, _) in zip(images, found, boxes.tolist(), strict=True):
        assert torch.equal(copy, image[top : top + 16, left : left + 16])


@pytest.mark.parametrize(("small", "side"), [(32, 224), (8, 20), (5, 5), (3, 10)])
def test_upsampling_is_that_of_torch(small: int, side: int) -> None:
    images = torch.from_numpy(random_images(3, small, small))
    expected = torch.nn.Upsample((side, side))(images.permute(0, 3, 1, 2).float())
    found = upsampled(images, side)
    assert found.is_contiguous()
    assert torch.equal(found.permute(0, 3, 1, 2).float(), expected)
