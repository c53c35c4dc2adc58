#!/usr/bin/env python
"""Estimate the influence of every source class or example on one target in one mode."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import InfluenceStage
from transfer_influence.datasets.sidecar import read_sidecar, unit_names
from transfer_influence.influence import estimate, write_influences
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("estimate_influence"):
        stage = parse(InfluenceStage, arguments.settings)
        data = read_sidecar(arguments.source)
        names = unit_names(arguments.source.parent, stage.unit)
        influences = estimate(arguments.summary, stage.estimator, stage.outcome, names)
        origin = Origin(stage.model_dump(mode="json"), {"source": data.digest}, arguments.code)
        write_influences(influences, names, arguments.output, origin.provenance())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="estimator and outcome; as JSON")
    parser.add_argument("--summary", required=True, type=Path, help="outcomes of all models")
    parser.add_argument("--source", required=True, type=Path, help="source's dataset.json")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
