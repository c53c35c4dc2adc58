import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.conftest import recipe_values

from transfer_influence.config.recipe import Recipe
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
