#!/usr/bin/env python
"""Find the pairs of a source and a target image with the most extreme influence."""

import argparse
from pathlib import Path

from transfer_influence.applications.pairs import list_pairs
from transfer_influence.config.settings import parse
from transfer_influence.config.stages import JudgedStage
from transfer_influence.figures.tables import save_listing
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("find_pairs"):
        stage = parse(JudgedStage, arguments.settings)
        labels = arguments.target / "test.labels.npy"
        proves = judged_images(stage, labels).proves
        inputs = {
            "influences": arguments.influences,
            "source": arguments.source / "dataset.json",
            "source_examples": arguments.source / "train.examples.parquet",
            "target": arguments.target / "dataset.json",
            "target_labels": labels,
            "target_examples": arguments.target / "test.examples.parquet",
        }
        table = list_pairs(arguments.influences, arguments.source, arguments.target, proves)
        settings = stage.model_dump(mode="json")
        provenance = Origin.of(settings, inputs, arguments.code).provenance()
        save_listing(table, arguments.output, arguments.csv, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--influences", required=True, type=Path, help="table of influences of source examples"
    )
    parser.add_argument("--source", required=True, type=Path, help="folder of the converted source")
    parser.add_argument("--target", required=True, type=Path, help="folder of the converted target")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--settings", required=True, help="how test images are divided; as JSON")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
