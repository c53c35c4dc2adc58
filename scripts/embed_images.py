#!/usr/bin/env python
"""Look at the training images of the source, or of a target, with models that saw all classes."""

import argparse
import time
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import EmbeddingStage
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.job import JobOptions
from transfer_influence.outcomes.weights import write_tensors
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin
from transfer_influence.surrogates.embedding import embed, one_trainer
from transfer_influence.training.devices import device_name


def main() -> None:
    arguments = parser().parse_args()
    with command_line("embed_images"):
        started = time.monotonic()
        stage = parse(EmbeddingStage, arguments.settings)
        inputs = {
            "sidecar": arguments.data / "dataset.json",
            "weights": arguments.weights,
            "sources": arguments.sources,
        }
        if arguments.source:
            inputs["source"] = arguments.source
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        classes = read_sidecar(arguments.source or inputs["sidecar"]).classes
        with one_trainer(arguments.data, stage, JobOptions.of(arguments)) as trainer:
            found = embed(
                trainer,
                stage,
                arguments.weights,
                arguments.sources,
                classes=len(classes),
                transferred=arguments.source is not None,
            )
            device = device_name(trainer.device)
        provenance = origin.provenance(device, time.monotonic() - started)
        write_tensors(found, arguments.output, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="network, recipe, models; as JSON")
    parser.add_argument("--data", required=True, type=Path, help="folder of the data set")
    parser.add_argument(
        "--source", type=Path, help="source's dataset.json, where the data set is a target"
    )
    parser.add_argument(
        "--weights", required=True, type=Path, nargs="+", help="models that saw all classes"
    )
    parser.add_argument(
        "--sources", required=True, type=Path, nargs="+", help="their tables, in the same order"
    )
    parser.add_argument("--output", required=True, type=Path, help="safetensors file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
