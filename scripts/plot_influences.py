#!/usr/bin/env python
"""Draw the influence of each source class on one target, and write the ranking as CSV."""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import Unit
from transfer_influence.figures.influences import influence_bars, influence_table
from transfer_influence.figures.style import OUTCOMES, save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_influences"):
        figure = influence_bars(
            arguments.ranking, arguments.outcome, arguments.title, arguments.unit
        )
        save(figure, arguments.svg, arguments.png)
        save_table(influence_table(arguments.ranking), arguments.csv)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranking", required=True, type=Path, help="table of ranked classes")
    parser.add_argument("--outcome", required=True, choices=OUTCOMES, help="what was explained")
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
