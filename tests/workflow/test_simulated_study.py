"""Outcomes simulated from known effects, through the DAG's rules of influences and removals."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from tests.workflow.conftest import STUDY, Project
from transfer_influence.config.study import Subset
from transfer_influence.outcomes.tables import PER_EXAMPLE, list_column, write_table
from transfer_influence.provenance import identity
from transfer_influence.subsets import draw_mask, pack, unpack

# Some models are really trained, without the classes that the simulation makes important.
pytestmark = pytest.mark.timeout(900)

CLASSES, MODELS = 10, 200
EFFECTS = np.array([3, -2, 5, 0, -4, 1, 4, -1, 2, -3]) / 2  # of each class on the margins
MOST_HELPFUL = [2, 6, 0]
LABELS = np.arange(20) % CLASSES  # of the target's test images


def write_shards(results: Path) -> None:
    """Source models and transfers whose margins are sums of the effects of their classes."""
    rng = np.random.default_rng(0)
    half = Subset()
    masks = np.stack([draw_mask(0, model, CLASSES, half) for model in range(MODELS)])
    images = len(LABELS)
    margins = (masks @ EFFECTS)[:, None] + rng.normal(0, 1, (MODELS, images))
    models = {
        "model": pa.array(range(MODELS), pa.int64()),
        "failed": pa.array([False] * MODELS),
    }
    sources, shard = results / "sources", f"000000-{MODELS - 1:06d}"
    sources.mkdir(parents=True)
    (sources / f"{shard}.safetensors").touch()
    packed = pa.array([pack(mask) for mask in masks], pa.binary(2))
    source_columns = {**models, "mask": packed, "accuracy": rng.uniform(0.8, 0.9, MODELS)}
    table = sources / f"{shard}.parquet"
    write_table(pa.table(source_columns), table, json.dumps({"settings": {}, "inputs": {}}))
    columns = {
        **models,
        "accuracy": (margins > 0).mean(axis=1),
        "loss": np.zeros(MODELS),
        "auroc": pa.nulls(MODELS, pa.float64()),
        "class_accuracy": list_column(np.full((MODELS, CLASSES), 0.5)),
        **{name: list_column(margins.astype(np.float32)) for name in PER_EXAMPLE[:5]},
        "is_correct": list_column(margins > 0),
        "prediction": list_column(np.tile(LABELS, (MODELS, 1)).astype(np.int32)),
    }
    origin = {"settings": {}, "inputs": {"sources": identity(table)}}
    transfers = results / "transfers/held_out/fixed"
    transfers.mkdir(parents=True)
    write_table(pa.table(columns), transfers / f"{shard}.parquet", json.dumps(origin))


def test_a_simulated_study_gets_its_ranking_back_and_removes_what_it_says(project: Project):
    held_out = np.load(project.folder / "held_out.npz")
    chosen = np.concatenate(
        [np.flatnonzero(held_out["labels"] == label)[:10] for label in range(10)]
    )
    np.savez(
        project.folder / "held_out.npz",
        images=held_out["images"][chosen],
        labels=held_out["labels"][chosen],
    )
    project.write_study(
        models=MODELS,
        models_per_job=MODELS,
        targets={"held_out": STUDY["targets"]["held_out"]},
        influence={"estimators": ["difference_in_means", "ridge"]},
        counterfactuals={"orders": ["top"], "counts": [0, 3], "replicates": 2},
    )
    converted = [f"results/tiny/data/{name}/dataset.json" for name in ("digits", "held_out")]
    run = project.snakemake(*converted)
    assert run.returncode == 0, run.stdout + run.stderr
    labels = np.load(project.results / "data/held_out/test.labels.npy")
    assert sorted(labels) == sorted(LABELS)
    write_shards(project.results)
    wanted = [
        "results/tiny/influences/held_out/fixed/ranking.parquet",
        "results/tiny/influences/held_out/fixed/ridge.parquet",
        "results/tiny/counterfactuals/sources/held_out-fixed-top-3-0.parquet",
    ]
    # What was simulated has no record of how it was made.
    run = project.snakemake("--rerun-triggers", "mtime", "--", *wanted)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "train_sources" not in run.stdout + run.stderr
    ranking = pd.read_parquet(project.folder / wanted[0]).sort_values("unit")
    ridge = pd.read_parquet(project.folder / wanted[1])
    # A class takes the place of another one, so its influence is its effect beyond theirs.
    beyond = EFFECTS - (EFFECTS.sum() - EFFECTS) / (CLASSES - 1)
    assert ranking["rank"].tolist() == (1 + np.argsort(np.argsort(-EFFECTS))).tolist()
    error = ranking["standard_error"]
    assert (np.abs(ranking["influence"] - beyond) < 4 * error).all()
    assert spearmanr(ridge["influence"], EFFECTS).statistic == pytest.approx(1)
    retrained = pq.read_table(project.folder / wanted[2])
    for kept in unpack(retrained["mask"].to_pylist(), CLASSES):
        assert sorted(np.flatnonzero(~kept)) == sorted(MOST_HELPFUL)
    assert len(set(retrained["seed"].to_pylist())) == 2
