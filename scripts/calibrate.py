#!/usr/bin/env python
"""Measure what one model of a stage costs on this device, with a few real steps of training."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.job import JobOptions
from transfer_influence.operation.calibration import CalibratedStage, calibrate
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("calibrate"):
        stage = parse(CalibratedStage, arguments.settings).root
        inputs = {"sidecar": arguments.data / "dataset.json"}
        calibrate(
            stage=stage,
            data=arguments.data,
            output=arguments.output,
            origin=Origin.of(stage.model_dump(mode="json"), inputs, arguments.code),
            options=JobOptions.of(arguments),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="of a training or transfer; as JSON")
    parser.add_argument("--data", required=True, type=Path, help="folder of the data set")
    parser.add_argument("--output", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    JobOptions.add_to(parser)
    return parser


if __name__ == "__main__":
    main()
