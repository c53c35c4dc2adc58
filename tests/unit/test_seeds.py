import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_influence.seeds import Stage, TrainingSeeds, stream


def words(*arguments) -> tuple[int, ...]:
    return tuple(stream(*arguments).generate_state(2, np.uint64).tolist())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, Stage.SUBSET, 0), (2635072618980576772, 8565498584995198975)),
        ((0, Stage.COUNTERFACTUAL_SOURCE, 1), (3112434154281347295, 1680237697535322775)),
        ((2**40, Stage.REMOVAL, 2), (17007541074553414991, 4055993901616287472)),
        (
            (7, Stage.TRANSFER, 3, "uci_digits", "fixed"),
            (3383135528830390212, 9768283338110725509),
        ),
    ],
)
def test_streams_never_change_as_they_are_part_of_every_result(arguments, expected):
    assert words(*arguments) == expected


def test_training_seeds_never_change():
    assert TrainingSeeds.from_stream(stream(0, Stage.SOURCE, 0)) == TrainingSeeds(
        weights=5769891174451087230,
        order=2501908039777630259,
        augmentation=9078363107468732344,
    )


def test_stages_keep_their_numbers():
    assert {stage.name: stage.value for stage in Stage} == {
        "SUBSET": 0,
        "SOURCE": 1,
        "TRANSFER": 2,
        "REMOVAL": 3,
        "COUNTERFACTUAL_SOURCE": 4,
        "VALIDATION": 5,
        "DIVISION": 6,
        "INFLUENCE": 10,
    }


def test_a_stream_is_numpys_seed_sequence_of_study_seed_stage_and_index():
    expected = np.random.SeedSequence(5, spawn_key=(1, 9)).generate_state(2, np.uint64)
    assert words(5, Stage.SOURCE, 9) == tuple(expected.tolist())


def test_streams_differ_between_study_seeds_stages_indices_and_scopes():
    scopes = [(), ("digits",), ("digits", "fixed"), ("digits", "full"), ("clothes", "fixed")]
    keys = list(itertools.product(range(3), Stage, range(20), scopes))
    assert len({words(seed, stage, index, *scope) for seed, stage, index, scope in keys}) == len(
        keys
    )


@given(st.integers(0, 2**70), st.sampled_from(Stage), st.integers(0, 2**31))
def test_training_seeds_are_three_different_numbers_below_2_63(seed, stage, index):
    sequence = stream(seed, stage, index)
    seeds = TrainingSeeds.from_stream(sequence)
    numbers = [seeds.weights, seeds.order, seeds.augmentation]
    assert len(set(numbers)) == 3
    assert all(type(number) is int and 0 <= number < 2**63 for number in numbers)
    assert TrainingSeeds.from_stream(stream(seed, stage, index)) == seeds
    assert TrainingSeeds.from_stream(stream(seed, stage, index + 1)) != seeds
