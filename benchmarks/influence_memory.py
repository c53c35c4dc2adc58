#!/usr/bin/env python
"""Estimate influences of synthetic outcomes at the size of a large study; print the peak memory.

    python benchmarks/influence_memory.py --models 7540 --classes 1000 --examples 50000

writes a summary of random masks and outcomes (1.4 GB at that size) to a temporary folder, runs
scripts/estimate_influence.py and scripts/measure_reliability.py on it as jobs would, and prints the
time and the peak memory of each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT / "workflow"))

from transfer_influence.config.stages import InfluenceStage  # noqa: E402
from transfer_influence.datasets.sidecar import FORMAT  # noqa: E402
from transfer_influence.outcomes.summary import ROW_GROUP  # noqa: E402
from transfer_influence.outcomes.tables import list_column  # noqa: E402


def write_summary(path: Path, models: int, classes: int, examples: int) -> None:
    """Write masks of half of the classes, and outcomes that depend on them and on noise."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(classes, 8)).astype(np.float32)
    loadings = rng.normal(size=(8, examples)).astype(np.float32)
    writer = None
    for first in range(0, models, ROW_GROUP):
        count = min(ROW_GROUP, models - first)
        masks = rng.random((count, classes)).argsort(axis=1) < classes // 2
        outcomes = masks.astype(np.float32) @ effects @ loadings
        outcomes += rng.normal(0, 20, outcomes.shape).astype(np.float32)
        packed = [np.packbits(mask, bitorder="little").tobytes() for mask in masks]
        rows = pa.table(
            {
                "model": pa.array(range(first, first + count), pa.int64()),
                "mask": packed,
                "raw_margin": list_column(outcomes),
            }
        )
        writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
        writer.write_table(rows)
    assert writer is not None
    writer.close()


def write_target(folder: Path, classes: int, examples: int) -> None:
    """Write what a job reads of the data sets: the source's classes and the target's labels."""
    np.save(folder / "test.labels.npy", np.arange(examples) % 10)
    sidecar = {
        **{"format": FORMAT, "ffcv": "", "name": "synthetic", "digest": "", "licence": ""},
        **{"citation": "", "classes": [f"class {index}" for index in range(classes)]},
        **{"train_count": 0, "test_count": 0, "train_class_counts": [], "test_class_counts": []},
        **{"mean": [0, 0, 0], "std": [1, 1, 1], "image_size": None, "largest_size": [1, 1]},
        "storage": {},
    }
    (folder / "dataset.json").write_text(json.dumps(sidecar))


@dataclass(frozen=True)
class Used:
    """What a job has used: wall and processor seconds, and peak resident memory in GB."""

    wall: float
    processor: float
    memory: float


def run(script: str, folder: Path, estimator: str, memory_gb: float) -> Used:
    """Run a job; return what it has used."""
    stage = InfluenceStage(
        seed=0,
        proof_fraction=0,
        accuracy="overall",
        unit="class",
        estimator=estimator,  # type: ignore[arg-type]
        outcome="raw_margin",
        intervals="closed_form",
        bootstrap_replicates=1000,
        held_out=0.2,
        largest_table_gb=10,
    )
    command = [
        *(sys.executable, str(CHECKOUT / "scripts" / script)),
        *("--settings", stage.model_dump_json(), "--memory-gb", str(memory_gb)),
        *("--summary", str(folder / "summary.parquet"), "--source", str(folder / "dataset.json")),
        *("--labels", str(folder / "test.labels.npy")),
        *("--output", str(folder / "output.parquet")),
    ]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "workflow")}
    process = subprocess.Popen(command, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{script}, {estimator}: exit status {status}")
    return Used(
        wall=time.monotonic() - started,
        processor=usage.ru_utime + usage.ru_stime,
        memory=usage.ru_maxrss * 1024 / 1e9,
    )


def main() -> None:
    """Write, estimate, print."""
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        shape = (arguments.models, arguments.classes, arguments.examples)
        write_target(folder, *shape[1:])
        write_summary(folder / "summary.parquet", *shape)
        size = (folder / "summary.parquet").stat().st_size / 1e9
        print("models × classes × examples: {} × {} × {}".format(*shape), f"({size:.2f} GB)")
        for estimator in arguments.estimators:
            for script in arguments.scripts:
                used = run(f"{script}.py", folder, estimator, arguments.memory_gb)
                print(
                    f"{estimator}, {script}: {used.wall:.0f} s, of processor {used.processor:.0f} "
                    f"s, peak memory {used.memory:.2f} GB",
                    flush=True,
                )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=7540)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--memory-gb", type=float, default=4)
    parser.add_argument(
        "--estimators", nargs="+", default=["difference_in_means", "ridge", "lasso"]
    )
    parser.add_argument(
        "--scripts", nargs="+", default=["estimate_influence", "measure_reliability"]
    )
    parser.add_argument("--folder", type=Path, help="where to put the temporary folder")
    return parser


if __name__ == "__main__":
    main()
