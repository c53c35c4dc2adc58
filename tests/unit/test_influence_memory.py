"""What a job that estimates takes, where it takes nearly all that it may."""

import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.measured import ROOM as PLENTY
from tests.unit.measured import measured, names, planted, random_masks

from transfer_influence.config.stages import InfluenceStage
from transfer_influence.errors import UserError
from transfer_influence.influence.estimation import OTHER_MEMORY, estimate, make_estimator
from transfer_influence.influence.estimators import joined
from transfer_influence.influence.measurements import GIGABYTE, Masks, Measurements, Outcomes

MODELS, CLASSES, VARYING = 300, 500, 20
CHUNK = 5  # models at a time, so that outcomes at hand take little
ROOM = 1e8  # bytes for matrices
ALLOWANCE = 2e7  # chunks of outcomes and of the table; what the allocator does not give back


def wide(columns: int) -> Measurements:
    """Outcomes that need no memory themselves; they differ in the first columns only."""
    varying = np.random.default_rng(0).normal(size=(MODELS, VARYING))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for first in range(0, MODELS, CHUNK):
            models = np.arange(first, first + CHUNK)
            outcomes = np.ones((CHUNK, columns))
            outcomes[:, :VARYING] = varying[models]
            yield models, outcomes

    models = np.arange(MODELS)
    packed = np.packbits(random_masks(MODELS, CLASSES), axis=1, bitorder="little")
    whole = varying.mean(axis=1, keepdims=True)
    masks = Masks(packed, CLASSES)
    return Measurements(models, models, masks, whole, whole[:, :0], Outcomes(columns, chunks))


def stage(estimator: str) -> InfluenceStage:
    return InfluenceStage(
        seed=0,
        proof_fraction=0,
        accuracy="overall",
        unit="class",
        estimator=estimator,
        outcome="raw_margin",
        intervals="closed_form",
        bootstrap_replicates=100,
        held_out=0.2,
        largest_table_gb=10,
    )


def job(estimator: str, columns: int, path: Path) -> None:
    memory_gb = (ROOM + OTHER_MEMORY) / GIGABYTE
    estimate(wide(columns), stage(estimator), names(CLASSES), memory_gb, path, "{}")


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))


def measure(estimator: str, columns: int, folder: Path) -> None:
    """Write what a job adds to the peak of a process that has done a small one before."""
    job(estimator, 400, folder / "small.parquet")
    before = peak()
    job(estimator, columns, folder / "large.parquet")
    (folder / "added").write_text(str(peak() - before))


@pytest.mark.parametrize(
    ("estimator", "columns", "refuses_more"),
    [("ridge", 30_000, True), ("lasso", 6_300, True), ("difference_in_means", 8_500, False)],
)
def test_a_job_near_its_limit_takes_what_it_may(tmp_path, estimator, columns, refuses_more):
    if refuses_more:
        with pytest.raises(UserError, match=r"^influence\.memory_gb: .* needs about 0\.1 GB"):
            job(estimator, int(1.1 * columns), tmp_path / "refused.parquet")
    process = multiprocessing.get_context("spawn").Process(
        target=measure, args=(estimator, columns, tmp_path)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    added = int((tmp_path / "added").read_text())
    assert 0.5 * ROOM < added < ROOM + ALLOWANCE


@pytest.mark.parametrize("estimator", ["difference_in_means", "ridge", "lasso"])
def test_columns_in_strips_have_the_same_numbers(monkeypatch, estimator):
    masks, outcomes, _ = planted(90, 50, 30)
    data = measured(masks, outcomes)
    whole = joined(make_estimator(stage(estimator), data, PLENTY).fit(data.examples))
    monkeypatch.setattr("transfer_influence.influence.estimators.STRIP", 8)
    monkeypatch.setattr("transfer_influence.influence.estimators.LEAST_STRIP", 7)
    strips = joined(make_estimator(stage(estimator), data, PLENTY).fit(data.examples))
    np.testing.assert_allclose(strips.influence, whole.influence, rtol=0, atol=1e-9)
    np.testing.assert_allclose(strips.standard_error, whole.standard_error, rtol=0, atol=1e-9)
