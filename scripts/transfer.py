#!/usr/bin/env python
"""Transfer a shard of source models to one target in one mode."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import TransferStage
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.job import JobOptions
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin, identity
from transfer_influence.training.transfers import transfer


def main() -> None:
    arguments = parser().parse_args()
    with command_line("transfer"):
        stage = parse(TransferStage, arguments.settings)
        settings, sidecar = stage.model_dump(mode="json"), arguments.data / "dataset.json"
        data = read_sidecar(sidecar).digest
        given = {"data": data, "sources": identity(arguments.sources)}
        common = stage.common("transfer", data, arguments.code)
        work = Origin(settings, given, arguments.code, common)
        inputs = {
            "sidecar": sidecar,
            "weights": arguments.weights,
            "sources": arguments.sources,
        }
        transfer(
            weights=arguments.weights,
            sources=arguments.sources,
            stage=stage,
            data=arguments.data,
            table=arguments.table,
            origin=Origin.of(settings, inputs, arguments.code, work),
            options=JobOptions.of(arguments),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="target, mode, recipe, seed; as JSON")
    parser.add_argument("--weights", required=True, type=Path, help="weights of the source models")
    parser.add_argument("--sources", required=True, type=Path, help="table of the source models")
    parser.add_argument("--data", required=True, type=Path, help="folder of the target data set")
    parser.add_argument("--table", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
