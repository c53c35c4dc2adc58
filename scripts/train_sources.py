#!/usr/bin/env python
"""Train a shard of source models, each on its own subset of the source classes or examples."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import SourceStage
from transfer_influence.config.study import shard_models
from transfer_influence.datasets.sidecar import read_sidecar, unit_names
from transfer_influence.job import JobOptions
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin, file_digest
from transfer_influence.subsets import source_models
from transfer_influence.training.sources import train_sources


def main() -> None:
    arguments = parser().parse_args()
    with command_line("train_sources"):
        stage = parse(SourceStage, arguments.settings)
        unit, listed = stage.subset.unit, stage.subset.listed
        settings, sidecar = stage.model_dump(mode="json"), arguments.data / "dataset.json"
        data = read_sidecar(sidecar).digest
        given = {"data": data, **({"listed": file_digest(listed)} if listed else {})}
        common = stage.common("train_sources", data, arguments.code)
        work = Origin(settings, given, arguments.code, common)
        inputs = {"sidecar": sidecar, **({"listed": listed} if listed else {})}
        train_sources(
            models=source_models(stage, arguments.shard, unit_names(arguments.data, unit)),
            stage=stage,
            data=arguments.data,
            weights=arguments.weights,
            table=arguments.table,
            origin=Origin.of(settings, inputs, arguments.code, work),
            options=JobOptions.of(arguments),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="subset, network, recipe, seed; as JSON")
    parser.add_argument(
        "--shard", required=True, type=shard_models, help="models to train, such as 000000-000015"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the source data set")
    parser.add_argument("--weights", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--table", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
