#!/usr/bin/env python
"""Find the source classes behind wrong predictions, and whether removing them corrects these."""

import argparse
from pathlib import Path

from transfer_influence.applications.failures import list_failures
from transfer_influence.config.settings import parse
from transfer_influence.config.stages import JudgedStage
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.figures.tables import save_listing
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("debug_failures"):
        stage = parse(JudgedStage, arguments.settings)
        labels = arguments.data / "test.labels.npy"
        proves = judged_images(stage, labels).proves
        sidecar = arguments.data / "dataset.json"
        examples = arguments.data / "test.examples.parquet"
        inputs = {
            "summary": arguments.summary,
            "influences": arguments.influences,
            "sidecar": sidecar,
            "examples": examples,
            "labels": labels,
            "transfers": arguments.transfers,
            "sources": arguments.sources,
        }
        table = list_failures(
            summary=arguments.summary,
            influences=arguments.influences,
            examples=examples,
            classes=read_sidecar(sidecar).classes,
            proves=proves,
            transfers=arguments.transfers,
            sources=arguments.sources,
        )
        settings = stage.model_dump(mode="json")
        provenance = Origin.of(settings, inputs, arguments.code).provenance()
        save_listing(table, arguments.output, arguments.csv, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", required=True, type=Path, help="outcomes of all models")
    parser.add_argument("--influences", required=True, type=Path, help="table of influences")
    parser.add_argument("--data", required=True, type=Path, help="folder of the converted target")
    parser.add_argument(
        "--transfers", type=Path, nargs="*", default=[], help="retrained models, transferred"
    )
    parser.add_argument(
        "--sources", type=Path, nargs="*", default=[], help="their source models, in the same order"
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--settings", required=True, help="how test images are divided; as JSON")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
