#!/usr/bin/env python
"""Draw how far surrogates agree with the influences, and what they cost; and write it as CSV."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import TransfersStage
from transfer_influence.figures.style import save
from transfer_influence.figures.surrogates import agreement_figure, agreement_table
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_surrogates"):
        stage, tables = parse(TransfersStage, arguments.settings), arguments.tables
        origin = Origin.of(stage.model_dump(mode="json"), {"tables": tables}, arguments.code)
        table = agreement_table(tables, stage.transfers)
        save_table(table, arguments.csv)
        figure = agreement_figure(table)
        save(figure, arguments.svg, arguments.png, origin.provenance(), [arguments.csv])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", required=True, type=Path, nargs="+", help="tables of agreement")
    parser.add_argument(
        "--settings", required=True, help='JSON: "transfers", [target, mode] of each table'
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
