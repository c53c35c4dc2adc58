import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.conftest import recipe_values

from transfer_influence.config.recipe import Recipe
from transfer_influence.config.settings import Settings, check
from transfer_influence.errors import UserError
from transfer_influence.training.schedule import learning_rates

counts = st.integers(1, 30)


def rates(schedule: dict, epochs: int, steps: int, rate: float = 1.0) -> np.ndarray:
    recipe = Recipe(**recipe_values(schedule=schedule, epochs=epochs, learning_rate=rate))
    return learning_rates(recipe, steps)


@pytest.mark.parametrize(
    ("peak", "expected"),
    [
        (0, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (1, [0, 0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (2, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25]),
        (4, [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),
    ],
)
def test_cyclic_rises_to_the_peak_and_falls_to_zero_at_the_end(peak, expected):
    found = rates({"kind": "cyclic", "peak_epoch": peak}, 4, 2, rate=0.3)
    np.testing.assert_allclose(found, 0.3 * np.array(expected), atol=1e-15)


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(1, 3, [8, 8, 4, 4, 2, 2]), (2, 3, [8, 8, 8, 8, 4, 4]), (5, 2, [8, 8, 8, 8])],
)
def test_step_multiplies_at_the_start_of_every_nth_epoch(every, epochs, expected):
    found = rates({"kind": "step", "every": every, "factor": 0.5}, epochs, 2, rate=8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("drops", "expected"),
    [
        ([2], [8, 8, 8, 8, 4, 4, 4, 4]),
        ([3, 1], [8, 8, 4, 4, 4, 4, 2, 2]),
        ([2, 2], [8, 8, 8, 8, 2, 2, 2, 2]),
        ([9], [8] * 8),
        ([], [8] * 8),
    ],
)
def test_multi_step_multiplies_at_each_listed_epoch(drops, expected):
    found = rates({"kind": "multi_step", "epochs": drops, "factor": 0.5}, 4, 2, rate=8)
    np.testing.assert_array_equal(found, expected)


@given(counts, counts, st.floats(0.01, 0.99))
def test_cyclic_is_the_interpolation_of_the_published_code(epochs, steps, share):
    peak = share * epochs
    found = rates({"kind": "cyclic", "peak_epoch": peak}, epochs, steps)
    published = np.interp(np.arange(epochs * steps), [0, peak * steps, epochs * steps], [0, 1, 0])
    np.testing.assert_allclose(found, published, atol=1e-9)


@given(counts, counts, st.floats(0, 30))
def test_cyclic_never_leaves_its_range_and_turns_once(epochs, steps, peak):
    assume(peak <= epochs)
    found = rates({"kind": "cyclic", "peak_epoch": peak}, epochs, steps, rate=0.7)
    assert found.shape == (epochs * steps,)
    assert found.dtype == np.float64
    assert (found >= 0).all()
    assert (found <= 0.7).all()
    at = np.arange(epochs * steps) / steps
    assert (np.diff(found[at <= peak]) > 0).all()
    assert (np.diff(found[at >= peak]) < 0).all()


@given(counts, counts, counts, st.lists(counts, max_size=5))
def test_steps_are_those_of_a_loop_over_epochs(epochs, steps, every, drops):
    stepped = rates({"kind": "step", "every": every, "factor": 0.5}, epochs, steps)
    listed = rates({"kind": "multi_step", "epochs": drops, "factor": 0.5}, epochs, steps)
    for step in range(epochs * steps):
        epoch = step // steps
        assert stepped[step] == 0.5 ** (epoch // every)
        assert listed[step] == 0.5 ** sum(drop <= epoch for drop in drops)


RAMP = {"start": 160, "end": 192, "start_epoch": 11, "end_epoch": 13}


def ramped(epochs: int, **ramp: int) -> Recipe:
    return Recipe(**recipe_values(resolution=ramp, epochs=epochs))


def test_the_published_ramp_epoch_by_epoch():
    assert ramped(16, **RAMP).training_resolutions == [160] * 12 + [192] * 4
    assert ramped(16, **RAMP, multiple=16).training_resolutions == [160] * 12 + [176] + [192] * 3


def published_resolution(
    epoch: int, start: int, end: int, start_epoch: int, end_epoch: int, multiple: int
) -> int:
    """ffcv-imagenet's rule."""
    if epoch <= start_epoch:
        return start
    if epoch >= end_epoch:
        return end
    between = np.interp([epoch], [start_epoch, end_epoch], [start, end])
    return int(np.round(between[0] / multiple)) * multiple


@given(
    st.sampled_from([1, 8, 32]), st.integers(1, 8), st.integers(0, 8), counts, st.integers(0, 20)
)
def test_a_ramp_is_that_of_the_published_code(multiple, first, more, start_epoch, length):
    ramp = {
        "start": first * multiple,
        "end": (first + more) * multiple,
        "start_epoch": start_epoch,
        "end_epoch": start_epoch + length,
        "multiple": multiple,
    }
    epochs = start_epoch + length + 3
    found = ramped(epochs, **ramp).training_resolutions
    assert found == [published_resolution(epoch, **ramp) for epoch in range(epochs)]
    assert found == sorted(found)
    assert all(side % multiple == 0 for side in found)


def test_test_images_have_the_last_resolution_or_their_own():
    assert ramped(16, **RAMP).evaluation_resolution == 192
    recipe = Recipe(**recipe_values(resolution=RAMP, test_resolution=224, epochs=16))
    assert recipe.evaluation_resolution == 224
    assert Recipe(**recipe_values(resolution=20, epochs=3)).training_resolutions == [20] * 3


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"end": 128}, "recipe.resolution: end 128 is below start 160; raise it."),
        ({"end_epoch": 9}, "recipe.resolution: end_epoch 9 lies before start_epoch 11; raise it."),
        (
            {"end": 200},
            "recipe.resolution: 200 is no multiple of 32; change it, or `multiple`.",
        ),
        (
            {"end_epoch": 16},
            "recipe: resolution.end_epoch 16 lies after the last of 16 epochs, which are counted "
            "from 0; lower it.",
        ),
        ({"stop": 3}, "recipe.resolution.stop: unknown key; correct or remove it."),
        ({"start": 0}, "recipe.resolution.start: 0 is not valid: input should be greater than 0"),
    ],
)
def test_a_ramp_that_makes_no_sense_is_refused_in_a_sentence(changes, wrong):
    class Holder(Settings):
        recipe: Recipe

    values = {"recipe": recipe_values(resolution=RAMP | changes, epochs=16)}
    with pytest.raises(UserError) as mistake:
        check(Holder, values, "mine.yaml")
    assert str(mistake.value).startswith(f"mine.yaml: {wrong}")


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (3, 6, [2, 5]), (9, 2, [1]), (None, 4, [])],
)
def test_epochs_are_evaluated_at_intervals_and_in_the_end(every, epochs, expected):
    recipe = Recipe(**recipe_values(epochs=epochs, evaluate_every=every))
    assert [epoch for epoch in range(epochs) if recipe.is_evaluated(epoch, epochs)] == expected


def test_the_network_sees_every_resolution_or_the_one_that_images_are_enlarged_to():
    values = recipe_values(resolution=RAMP, test_resolution=224, epochs=16)
    assert Recipe(**values).network_resolutions == {160, 192, 224}
    assert Recipe(**values, upsample_to=256).network_resolutions == {256}
    with pytest.raises(ValueError, match="upsample_to 200 is below the resolution, 224; raise it"):
        Recipe(**values, upsample_to=200)
