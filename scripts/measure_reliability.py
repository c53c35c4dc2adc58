#!/usr/bin/env python
"""Measure how reliable the influences on one target are, and how many models are enough."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import InfluenceStage
from transfer_influence.datasets.sidecar import unit_names
from transfer_influence.influence.measurements import read_measurements
from transfer_influence.influence.reliability import write_reliability
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("measure_reliability"):
        stage = parse(InfluenceStage, arguments.settings)
        names = unit_names(arguments.source.parent, stage.unit)
        images = judged_images(stage, arguments.labels)
        data = read_measurements(
            arguments.summary, stage.outcome, names, images, arguments.memory_gb
        )
        inputs = {
            "summary": arguments.summary,
            "source": arguments.source,
            "labels": arguments.labels,
        }
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        write_reliability(
            data,
            stage,
            arguments.memory_gb,
            arguments.output,
            origin.provenance(),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="how to estimate; as JSON")
    parser.add_argument("--summary", required=True, type=Path, help="outcomes of all models")
    parser.add_argument("--source", required=True, type=Path, help="source's dataset.json")
    parser.add_argument("--labels", required=True, type=Path, help="target's test.labels.npy")
    parser.add_argument("--memory-gb", type=float, default=4, help="memory to get by with")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
