"""How a study grows until its influences are reliable."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tests.unit.test_census import study_in, write
from tests.unit.test_estimate import CALIBRATION, write_sidecar

from transfer_influence.errors import UserError
from transfer_influence.influence.prophecy import models_needed
from transfer_influence.operation.growth import Growth, Reliability
from transfer_influence.outcomes.tables import write_table


@pytest.fixture
def growth(tmp_path: Path) -> Growth:
    return grown(tmp_path)


def grown(folder: Path, goal: float = 0.9, most: int = 400, **changes: Any) -> Growth:
    """The growth of a study with two targets, whose images are of ten classes."""
    study = study_in(folder)
    values = {**study.model_dump(mode="json", exclude_none=True), "models": 22, **changes}
    file = folder / "study.yaml"
    write(file, text=yaml.safe_dump(values))
    write_sidecar(study, study.source.dataset, train=1000)
    return Growth([file], folder, goal, most)


def write_reliabilities(growth: Growth, *ends: tuple[float, float, float]) -> None:
    for table, (value, low, high) in zip(growth.tables, ends, strict=True):
        columns = {
            "statistic": ["split_half", "reliability", "reliability", "models_needed"],
            "models": [5, 10, 22, 22],
            "value": [0.1, 0.2, value, 99.0],
            "low": [None, None, low, None],
            "high": [None, None, high, None],
        }
        path = growth.folder / table
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(pa.table(columns), path, "{}")


def test_it_begins_with_the_models_of_the_study_and_goes_on_where_it_was(growth):
    growth.start()
    assert growth.study.models == 22
    growth.write(66)
    growth.start()
    assert growth.study.models == 66
    Growth(growth.study_files, growth.folder, 0.9, most=44).start()
    assert growth.study.models == 44


def test_the_reliability_is_that_of_all_models(growth):
    growth.start()
    write_reliabilities(growth, *[(0.5, 0.3, 0.7)] * 2, (0.8, 0.6, 0.9))
    found = growth.look()
    assert [(each.target, each.mode) for each in found] == growth.study.transfers
    assert (found[0].value, found[0].low, found[0].high) == (0.5, 0.3, 0.7)
    assert str(found[2]).endswith(": 0.800 [0.600, 0.900]")


def reliability(value: float, low: float, high: float) -> Reliability:
    return Reliability("birds", "fixed", value, low, high)


def test_it_ends_when_all_lower_ends_are_high_enough(growth):
    enough, little = reliability(0.95, 0.9, 0.99), reliability(0.95, 0.89, 0.99)
    assert growth.is_reached([enough, enough])
    assert not growth.is_reached([enough, little])
    assert not growth.is_reached([reliability(np.nan, np.nan, np.nan)])


@pytest.mark.parametrize(
    ("found", "most", "models"),
    [
        # As many as are needed even by the upper end: 22 × 9 × (1 - 0.85) / 0.85 = 34.9.
        ([(0.8, 0.5, 0.85)], 400, 36),
        ([(0.8, 0.5, 0.85), (0.8, 0.5, 0.99)], 400, 36),
        ([(0.8, 0.5, 0.95)], 400, 24),  # one job more
        ([(0.3, 0.0, 0.4)], 400, 44),  # no more than twice as many
        ([(np.nan, np.nan, np.nan)], 400, 44),
        ([(0.3, 0.0, 0.4)], 30, 28),
        ([(0.3, 0.0, 0.4)], 23, 22),
    ],
)
def test_the_next_models_are_those_that_are_needed_for_sure(tmp_path, found, most, models):
    growth = grown(tmp_path, most=most, models_per_job=4)
    growth.start()
    assert growth.next_models([reliability(*each) for each in found]) == models


def test_balanced_subsets_grow_by_whole_blocks(tmp_path):
    source = study_in(tmp_path).source.model_dump(mode="json", exclude_none=True)
    growth = grown(tmp_path, source={**source, "subset": {"sampling": "balanced"}})
    growth.start()
    assert growth.next_models([reliability(0.8, 0.5, 0.95)]) == 44
    growth.write(44)
    assert growth.next_models([reliability(0.5, 0.2, 0.7)]) == 88


def test_what_is_needed_and_what_it_costs_is_said(growth):
    growth.start()
    for stage in ("sources", "birds/fixed", "birds/full", "cars/full"):
        path = growth.study.folder / "plan" / f"{stage}.json"
        write(path, text=CALIBRATION.model_dump_json())
    for name in growth.study.datasets:
        write_sidecar(growth.study, name, train=1000)
    said = growth.expected([reliability(0.6, 0.4, 0.8), reliability(0.5, 0.3, 0.7)])
    needed = models_needed(0.5, 22)
    assert f"{needed:.2g}" == "2e+02"
    assert said.startswith("about 200 models are expected to be needed: ")
    assert "more of one job at a time" in said
    unknown = reliability(np.nan, np.nan, np.nan)
    assert growth.expected([unknown]) == "how many models are needed is not known yet"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"influence": {"estimators": ["lasso"]}}, "no influences with a standard error"),
        ({"goal": 1.0}, "--until-reliability: 1.0 is not between 0 and 1"),
        ({"most": 21}, "--at-most: 21 are fewer than the study's models: 22; raise it"),
    ],
)
def test_a_study_that_cannot_grow_is_refused(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        grown(tmp_path, **changes).start()
