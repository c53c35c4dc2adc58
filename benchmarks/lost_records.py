#!/usr/bin/env python
"""Time the start of a study whose Snakemake has lost all records, against one that has them.

Stand-ins of all shards of source models and of their transfers to one target in two modes are
written with the origin that the workflow would give them, so that all are fresh. Run it from the
root of the checkout: python benchmarks/lost_records.py [SHARDS]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import torch
import yaml
from safetensors.torch import save_file

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "workflow")]

from tests.workflow.conftest import RECIPE, STUDY, write_project  # noqa: E402

from transfer_influence.code import code_digest  # noqa: E402
from transfer_influence.config.stages import source_stage, transfer_stage  # noqa: E402
from transfer_influence.config.study import Study, read_study  # noqa: E402
from transfer_influence.outcomes.tables import write_table  # noqa: E402
from transfer_influence.provenance import KEY, Origin, identity, with_companions  # noqa: E402

MODES = ["fixed", "full"]


def main() -> None:
    """See above."""
    shards = int(sys.argv[1]) if len(sys.argv) > 1 else 472
    with tempfile.TemporaryDirectory() as folder:
        project = write_project(Path(folder))
        target = {"modes": MODES, "recipe": RECIPE}
        study = {**STUDY, "models": shards * 4, "targets": {"photos": target}}
        path = project.folder / "config" / "tiny.yaml"
        path.write_text(yaml.safe_dump({**study, "counterfactuals": None}))
        names = [f"results/tiny/data/{name}/dataset.json" for name in ("digits", "photos")]
        assert project.snakemake(*names).returncode == 0
        write_stand_ins(read_study([path]), project.results)
        wanted = [f"results/tiny/transfers/photos/{mode}" for mode in MODES]
        tables = [
            str(p.relative_to(project.folder))
            for w in wanted
            for p in sorted((project.folder / w).glob("*.parquet"))
        ]
        for state in ("no records", "no records", "records"):
            if state == "no records":
                shutil.rmtree(project.folder / ".snakemake", ignore_errors=True)
            else:
                run(project.command("--cores", "1", "--quiet", "all", "--", *tables), folder)
            seconds = run(project.command("--dry-run", "--quiet", "--", *tables), folder)
            print(f"{len(tables) + shards} jobs, {state}: {seconds:.1f} s")


def run(command: list[str], folder: str) -> float:
    """Run a command to its end; return its seconds."""
    started = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train_sources" not in done.stdout, "stand-ins are stale"
    return time.monotonic() - started


def write_stand_ins(study: Study, results: Path) -> None:
    """Write weights and tables of all shards, and their transfers, each of one row."""
    sidecars = [results / "data" / name / "dataset.json" for name in ("digits", "photos")]
    code = [
        code_digest(CHECKOUT / "scripts" / f"{name}.py") for name in ("train_sources", "transfer")
    ]
    settings = source_stage(study).model_dump(mode="json")
    origin = Origin.of(settings, {"sidecar": sidecars[0]}, code[0])
    for number, shard in enumerate(study.shards):
        table, weights = (
            results / "sources" / f"{shard}{end}" for end in (".parquet", ".safetensors")
        )
        table.parent.mkdir(exist_ok=True)
        made = json.dumps(json.loads(origin.statement) | {"digest": str(number)})
        save_file({"0/w": torch.full((4,), float(number))}, weights, {KEY: made})
        row = pa.table({"model": [number]})
        write_table(row, table, with_companions(origin.provenance(), {weights.name: weights}))
        for mode in MODES:
            of_transfer = transfer_stage(study, "photos", mode).model_dump(mode="json")
            inputs = {
                "sidecar": identity(sidecars[1]),
                "weights": identity(weights),
                "sources": identity(table),
            }
            made = Origin(of_transfer, inputs, code[1]).statement
            output = results / "transfers" / "photos" / mode / f"{shard}.parquet"
            write_table(row, output, made)


if __name__ == "__main__":
    main()
