#!/usr/bin/env python
"""Draw how reliable the influences on one target are, against the number of models, and as CSV."""

import argparse
from pathlib import Path

from transfer_influence.figures.reliability import ESTIMATORS, reliability_curves, reliability_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_reliability"):
        tables, estimators = arguments.tables, arguments.estimators
        save(reliability_curves(tables, estimators, arguments.title), arguments.svg, arguments.png)
        save_table(reliability_table(tables, estimators), arguments.csv)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tables", required=True, type=Path, nargs="+", help="tables of reliability"
    )
    parser.add_argument(
        "--estimators",
        required=True,
        nargs="+",
        choices=ESTIMATORS,
        help="what each table is of, in the same order",
    )
    parser.add_argument(
        "--title", required=True, help='what the title begins with, such as "uci_digits, fixed"'
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    return parser


if __name__ == "__main__":
    main()
