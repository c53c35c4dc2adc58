"""q-values of extreme influences among all that were searched."""

from math import comb
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from transfer_influence.applications.chance import Chance
from transfer_influence.applications.failures import more_often
from transfer_influence.influence.intervals import significant
from transfer_influence.outcomes.tables import list_column


def write(path: Path, influence: np.ndarray, error: np.ndarray, freedom: np.ndarray) -> Path:
    columns = {
        "unit": pa.array(range(len(influence)), pa.int32()),
        "name": [f"class {unit}" for unit in range(len(influence))],
        "example_influence": list_column(influence.astype(np.float32)),
        "example_standard_error": list_column(error.astype(np.float32)),
        "example_freedom": freedom,
    }
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def p_values(sizes: np.ndarray, freedom: np.ndarray, side: int) -> np.ndarray:
    if side == 0:
        return 2 * stats.t.sf(np.abs(sizes), freedom[:, None])
    return stats.t.sf(side * sizes, freedom[:, None])


@pytest.mark.parametrize("side", [1, -1, 0])
def test_q_values_are_those_of_a_sort_of_all_but_for_a_hundredth(tmp_path, side):
    rng = np.random.default_rng(side + 1)
    freedom = np.array([5.0, 30.0, 200.0] * 10)
    sizes = rng.standard_t(freedom[:, None], (30, 400))
    sizes[:3, :50] += rng.choice([-7, 7], (3, 50))
    error = rng.uniform(0.5, 2, sizes.shape).astype(np.float32)
    influence = (sizes * error).astype(np.float32)
    path = write(tmp_path / "influences.parquet", influence, error, freedom)
    every = np.repeat(freedom, 400)
    found = Chance.of(path, "example", side).q_values(influence.ravel(), error.ravel(), every)
    exact = p_values(influence.astype(float) / error, freedom, side).ravel()
    expected = stats.false_discovery_control(exact)
    known = exact < 0.19
    assert (found[known] >= expected[known] * (1 - 1e-9)).all()
    assert (found[known] <= np.minimum(1, expected[known] * 1.011)).all()
    assert (found <= 0.05).sum() > 20
    assert (found > 0.5).sum() > 1000


def test_without_any_effect_hardly_a_study_has_a_row_beyond_chance(tmp_path):
    freedom, found = np.full(20, 30.0), []
    for seed in range(200):
        influence = np.random.default_rng(seed).standard_t(30, (20, 250))
        path = write(tmp_path / "none.parquet", influence, np.ones_like(influence), freedom)
        best = np.sort(influence.ravel())[-10:]
        chance = Chance.of(path, "example", 1)
        found.append((chance.q_values(best, np.ones(10), np.full(10, 30.0)) <= 0.05).any())
    assert sum(found) <= stats.binom.isf(0.001, 200, 0.05)


def test_without_standard_errors_nothing_is_known(tmp_path):
    nothing = np.full((4, 5), np.nan)
    path = write(tmp_path / "lasso.parquet", np.ones((4, 5)), nothing, np.full(4, np.nan))
    found = Chance.of(path, "example", 1).q_values(np.ones(2), nothing[0, :2], nothing[0, :2])
    assert np.isnan(found).all()
    assert significant(found).to_pylist() == [None, None]


@pytest.mark.parametrize(
    "counts", [(3, 3, 0, 3), (7, 10, 3, 12), (0, 4, 2, 5), (150, 200, 90, 300)]
)
def test_fishers_exact_test_is_that_of_scipy(counts):
    hits, trials, others, of = counts
    table = [[hits, trials - hits], [others, of - others]]
    expected = stats.fisher_exact(table, alternative="greater").pvalue
    assert more_often(*counts) == pytest.approx(expected, rel=1e-9)


def test_three_against_three_are_as_sure_as_one_in_twenty():
    assert more_often(3, 3, 0, 3) == pytest.approx(1 / comb(6, 3))
