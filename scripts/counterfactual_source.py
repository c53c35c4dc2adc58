#!/usr/bin/env python
"""Train source models with the most helpful, most harmful, random or listed units removed."""

import argparse
from pathlib import Path

import numpy as np

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import RemovalStage
from transfer_influence.counterfactual.removals import mask_digest, retrained_models
from transfer_influence.datasets.sidecar import read_sidecar, unit_names
from transfer_influence.job import JobOptions
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin
from transfer_influence.training.sources import train_sources


def main() -> None:
    arguments = parser().parse_args()
    with command_line("counterfactual_source"):
        stage = parse(RemovalStage, arguments.settings)
        settings, sidecar = stage.model_dump(mode="json"), arguments.data / "dataset.json"
        source = read_sidecar(sidecar)
        data, images = source.digest, np.array(source.train_class_counts)
        names = unit_names(arguments.data, stage.unit)
        models = retrained_models(stage, arguments.ranking, names, images)
        # Of the first: the others' are the same, or follow from their numbers.
        given = {"data": data, "mask": mask_digest(models[0].mask)}
        decides = stage.model_dump(mode="json", exclude={"replicates"})  # however many there are
        common = stage.common("counterfactual_source", data, arguments.code)
        work = Origin(decides, given, arguments.code, common)
        inputs = {"sidecar": sidecar}
        if arguments.ranking:
            inputs["ranking"] = arguments.ranking
        train_sources(
            models=models,
            stage=stage,
            data=arguments.data,
            weights=arguments.weights,
            table=arguments.table,
            origin=Origin.of(settings, inputs, arguments.code, work),
            options=JobOptions.of(arguments),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="removal, network, recipe, seed; as JSON")
    parser.add_argument(
        "--ranking", type=Path, help="table of the ranking, or list of a named order"
    )
    parser.add_argument("--data", required=True, type=Path, help="folder of the source data set")
    parser.add_argument("--weights", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--table", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
