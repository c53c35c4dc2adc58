#!/usr/bin/env python
"""Draw how reliable the influences on one target are, against the number of models, and as CSV."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import ReliabilityFigureStage
from transfer_influence.figures.reliability import reliability_curves, reliability_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_reliability"):
        stage, tables = parse(ReliabilityFigureStage, arguments.settings), arguments.tables
        origin = Origin.of(stage.model_dump(mode="json"), {"tables": tables}, arguments.code)
        save_table(reliability_table(tables, stage.estimators), arguments.csv)
        figure = reliability_curves(tables, stage.estimators, stage.title)
        save(figure, arguments.svg, arguments.png, origin.provenance(), [arguments.csv])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", required=True, type=Path, nargs="+", help="tables of reliability"
    )
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "title", what the title begins with, such as "uci_digits, fixed"; '
        '"estimators", one a table, in the same order',
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
