#!/usr/bin/env python
"""Draw the influence of each source class on one target, and write the ranking as CSV."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import InfluencesFigureStage
from transfer_influence.figures.influences import influence_bars, influence_table
from transfer_influence.figures.style import save
from transfer_influence.figures.tables import save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plot_influences"):
        stage = parse(InfluencesFigureStage, arguments.settings)
        inputs = {"ranking": arguments.ranking}
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        save_table(influence_table(arguments.ranking), arguments.csv)
        figure = influence_bars(
            arguments.ranking, stage.outcome, stage.title, stage.unit, stage.one_size
        )
        save(figure, arguments.svg, arguments.png, origin.provenance(), [arguments.csv])


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranking", required=True, type=Path, help="table of ranked classes")
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "title", what the title begins with, such as "uci_digits, fixed"; "outcome" '
        'explained; "unit" judged, "class" or "example"; "one_size", whether all models saw '
        "as many",
    )
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
