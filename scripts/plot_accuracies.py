#!/usr/bin/env python
"""Draw the spread of the accuracies of source and transferred models, and write it as CSV."""

import argparse
from pathlib import Path

from transfer_influence.figures.accuracies import accuracy_distributions, accuracy_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_accuracies"):
        figure = accuracy_distributions(arguments.summaries, arguments.names)
        save(figure, arguments.svg, arguments.png)
        save_table(accuracy_table(arguments.summaries, arguments.names), arguments.csv)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--summaries", required=True, type=Path, nargs="+", help="one a target and mode"
    )
    parser.add_argument(
        "--names",
        required=True,
        nargs="+",
        help='what to call each summary, in the same order, such as "uci_digits, fixed"',
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    return parser


if __name__ == "__main__":
    main()
