#!/usr/bin/env python
"""Draw accuracy against the number of removed source classes, and write its summary as CSV."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import CurvesFigureStage
from transfer_influence.figures.counterfactuals import counterfactual_curves, counterfactual_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_counterfactuals"):
        stage = parse(CurvesFigureStage, arguments.settings)
        models, summary = arguments.counterfactuals, arguments.summary
        inputs = {"counterfactuals": models, "summary": summary}
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        save_table(counterfactual_table(summary), arguments.csv)
        figure = counterfactual_curves(models, summary, stage.title, stage.unit)
        save(figure, arguments.svg, arguments.png, origin.provenance(), [arguments.csv])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--counterfactuals", required=True, type=Path, help="table of retrained models"
    )
    parser.add_argument("--summary", required=True, type=Path, help="summary of these")
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "title", what the title begins with, such as "uci_digits, fixed"; "unit" '
        'removed, "class" or "example"',
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
