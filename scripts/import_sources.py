#!/usr/bin/env python
"""Read a shard of source models from checkpoints that exist already, and evaluate them."""

import argparse
import hashlib
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import ImportStage
from transfer_influence.config.study import checkpoint_path, shard_models
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.job import JobOptions
from transfer_influence.models.checkpoints import digest_checkpoints
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin
from transfer_influence.subsets import imported_models, pack
from transfer_influence.training.imports import import_sources


def main() -> None:
    arguments = parser().parse_args()
    with command_line("import_sources"):
        stage = parse(ImportStage, arguments.settings)
        settings, sidecar = stage.model_dump(mode="json"), arguments.data / "dataset.json"
        data = read_sidecar(sidecar)
        numbers = [model for model in arguments.shard if model < stage.models]
        models = imported_models(stage.masks, numbers, data.units(stage.unit))
        masks = hashlib.sha256(b"".join(pack(source.mask) for source in models)).hexdigest()[:16]
        files = [checkpoint_path(stage.checkpoints, number) for number in numbers]
        given = {"data": data.digest, "masks": masks, "checkpoints": digest_checkpoints(files)}
        # Whatever the times of the bank's files, and however many other models it has.
        decides = stage.model_dump(mode="json", exclude={"models", "bank"})
        common = stage.common("import_sources", data.digest, arguments.code)
        work = Origin(decides, given, arguments.code, common)
        import_sources(
            models=models,
            stage=stage,
            data=arguments.data,
            weights=arguments.weights,
            table=arguments.table,
            origin=Origin.of(settings, {"sidecar": sidecar}, arguments.code, work),
            options=JobOptions.of(arguments),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--settings", required=True, help="checkpoints, masks, network, recipe, models; as JSON"
    )
    parser.add_argument(
        "--shard", required=True, type=shard_models, help="models to read, such as 000000-000015"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the source data set")
    parser.add_argument("--weights", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--table", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
