#!/usr/bin/env python
"""Draw accuracy against the number of removed source classes, and write its summary as CSV."""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import Unit
from transfer_influence.figures.counterfactuals import counterfactual_curves, counterfactual_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_counterfactuals"):
        figure = counterfactual_curves(
            arguments.counterfactuals, arguments.summary, arguments.title, arguments.unit
        )
        save(figure, arguments.svg, arguments.png)
        save_table(counterfactual_table(arguments.summary), arguments.csv)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--counterfactuals", required=True, type=Path, help="table of retrained models"
    )
    parser.add_argument("--summary", required=True, type=Path, help="summary of these")
    parser.add_argument(
        "--title", required=True, help='what the title begins with, such as "uci_digits, fixed"'
    )
    parser.add_argument(
        "--unit", required=True, choices=get_args(Unit), help="what was judged and removed"
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    return parser


if __name__ == "__main__":
    main()
