"""The programs behind the rules of influences, on a simulated study of known effects."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from tests.conftest import CHECKOUT
from tests.unit.measured import names, planted

from transfer_influence.datasets.sidecar import FORMAT
from transfer_influence.outcomes.tables import list_column
from transfer_influence.provenance import read_provenance
from transfer_influence.subsets import pack

CLASSES, IMAGES = 12, 6
SETTINGS = {
    "seed": 0,
    "proof_fraction": 0,
    "accuracy": "overall",
    "unit": "class",
    "outcome": "raw_margin",
    "intervals": "bootstrap",
    "bootstrap_replicates": 100,
    "held_out": 0.2,
    "largest_table_gb": 1,
}


def run(script: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def simulated(tmp_path) -> tuple[Path, np.ndarray]:
    """A folder with what the programs read, and the effects on the whole target."""
    masks, outcomes, effects = planted(200, CLASSES, IMAGES, noise=1)
    rows = {
        "model": pa.array(range(200), pa.int64()),
        "mask": [pack(mask) for mask in masks],
        "raw_margin": list_column(outcomes.astype(np.float32)),
    }
    pq.write_table(pa.table(rows), tmp_path / "summary.parquet", row_group_size=64)
    np.save(tmp_path / "labels.npy", np.arange(IMAGES) % 2)
    sidecar = {
        **{"format": FORMAT, "ffcv": "", "name": "simulated", "digest": "abc", "licence": ""},
        **{"citation": "", "classes": names(CLASSES), "train_count": 0, "test_count": 0},
        **{"train_class_counts": [], "test_class_counts": [], "mean": [0, 0, 0]},
        **{"std": [1, 1, 1], "image_size": None, "largest_size": [1, 1], "storage": {}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(sidecar))
    return tmp_path, effects.mean(axis=1)


@pytest.mark.parametrize("estimator", ["difference_in_means", "ridge", "lasso"])
def test_a_simulated_study_gets_its_ranking_back(simulated, estimator):
    folder, effects = simulated
    inputs = (
        *("--settings", json.dumps({**SETTINGS, "estimator": estimator})),
        *("--summary", folder / "summary.parquet", "--source", folder / "dataset.json"),
        *("--labels", folder / "labels.npy", "--memory-gb", 2),
    )
    table, reliability = folder / "influences.parquet", folder / "reliability.parquet"
    run("estimate_influence.py", *inputs, "--output", table)
    run("measure_reliability.py", *inputs, "--output", reliability)
    run("rank_units.py", "--influences", table, "--output", folder / "ranking.parquet")

    ranking = pq.read_table(folder / "ranking.parquet").to_pandas()
    assert spearmanr(ranking["rank"], -effects[ranking["unit"]]).statistic > 0.9
    if estimator == "lasso":
        assert ranking["low"].isna().all()
        assert ranking["significant"].isna().all()
        assert pq.read_table(table)["example_standard_error"].null_count == CLASSES
    else:
        assert (ranking["low"] < ranking["influence"]).all()
        assert ranking["significant"].iloc[[0, -1]].all()
    measures = pq.read_table(reliability).to_pandas().set_index("statistic")
    assert measures.loc["reliability", "value"].iloc[0] > 0.8
    assert len(measures.loc["linear_datamodeling_score"]) == 1 + IMAGES
    for path in (table, reliability):
        assert read_provenance(path)["settings"]["estimator"] == estimator
