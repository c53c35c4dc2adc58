#!/usr/bin/env python
"""Compare the influences on all targets: which source classes help one and hurt another?"""

import argparse
from pathlib import Path

from transfer_influence.applications.opposed import compare_targets
from transfer_influence.config.settings import parse
from transfer_influence.config.stages import ComparisonStage
from transfer_influence.figures.comparison import opposed_classes
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import first_rows, save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("compare_targets"):
        stage = parse(ComparisonStage, arguments.settings)
        inputs = {"rankings": arguments.rankings}
        provenance = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code).provenance()
        compare_targets(arguments.rankings, stage.transfers, arguments.output, provenance)
        save_table(first_rows(arguments.output), arguments.csv)
        figure = opposed_classes(arguments.output, stage.outcome, stage.unit)
        others = [arguments.output, arguments.csv]
        save(figure, arguments.svg, arguments.png, provenance, others)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rankings", required=True, type=Path, nargs="+", help="tables of ranked classes"
    )
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "transfers", [target, mode] of each ranking; "outcome" explained; "unit"',
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
