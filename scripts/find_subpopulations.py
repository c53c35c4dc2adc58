#!/usr/bin/env python
"""Find the target images a source class helps most, and the source classes that carry a class."""

import argparse
from pathlib import Path

from transfer_influence.applications.subpopulations import list_carriers, write_helped
from transfer_influence.config.settings import parse
from transfer_influence.config.stages import JudgedStage
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.figures.tables import first_rows, save_listing, save_table
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin

EXAMPLES = "test.examples.parquet"


def main() -> None:
    arguments = parser().parse_args()
    with command_line("find_subpopulations"):
        stage = parse(JudgedStage, arguments.settings)
        labels = arguments.data / "test.labels.npy"
        proves = judged_images(stage, labels).proves
        sidecar, examples = (arguments.data / name for name in ("dataset.json", EXAMPLES))
        inputs = {
            "influences": arguments.influences,
            "sidecar": sidecar,
            "examples": examples,
            "labels": labels,
        }
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        classes = read_sidecar(sidecar).classes
        write_helped(
            arguments.influences, examples, classes, proves, arguments.helped, origin.provenance()
        )
        save_table(first_rows(arguments.helped), arguments.helped_csv)
        save_listing(
            list_carriers(arguments.influences, classes),
            arguments.carriers,
            arguments.carriers_csv,
            origin.provenance(),
            others=[arguments.helped, arguments.helped_csv],
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--influences", required=True, type=Path, help="table of influences")
    parser.add_argument("--data", required=True, type=Path, help="folder of the converted target")
    for name, what in [("helped", "images a class helps"), ("carriers", "classes that carry one")]:
        parser.add_argument(f"--{name}", required=True, type=Path, help=f"Parquet file: {what}")
        parser.add_argument(f"--{name}-csv", required=True, type=Path, help="the same as CSV")
    parser.add_argument("--settings", required=True, help="how test images are divided; as JSON")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
