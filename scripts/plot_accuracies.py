#!/usr/bin/env python
"""Draw the spread of the accuracies of source and transferred models, and write it as CSV."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import TransfersStage
from transfer_influence.figures.accuracies import accuracy_distributions, accuracy_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_accuracies"):
        stage = parse(TransfersStage, arguments.settings)
        inputs = {"summaries": arguments.summaries}
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        names = [f"{target}, {mode}" for target, mode in stage.transfers]
        save_table(accuracy_table(arguments.summaries, names), arguments.csv)
        figure = accuracy_distributions(arguments.summaries, names)
        save(figure, arguments.svg, arguments.png, origin.provenance(), [arguments.csv])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--summaries", required=True, type=Path, nargs="+", help="one a target and mode"
    )
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "transfers", [target, mode] of each summary, in the same order',
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
