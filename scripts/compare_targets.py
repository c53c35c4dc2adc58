#!/usr/bin/env python
"""Compare the influences on all targets: which source classes help one and hurt another?"""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.applications.classes import compare_targets
from transfer_influence.config.study import Mode, Unit
from transfer_influence.figures.comparison import opposed_classes
from transfer_influence.figures.style import OUTCOMES, save
from transfer_influence.figures.tables import first_rows, save_table
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("compare_targets"):
        transfers = list(zip(arguments.targets, arguments.modes, strict=True))
        origin = Origin({"transfers": transfers}, {}, arguments.code)
        compare_targets(arguments.rankings, transfers, arguments.output, origin.provenance())
        figure = opposed_classes(arguments.output, arguments.outcome, arguments.unit)
        save(figure, arguments.svg, arguments.png)
        save_table(first_rows(arguments.output), arguments.csv)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rankings", required=True, type=Path, nargs="+", help="tables of ranked classes"
    )
    parser.add_argument("--targets", required=True, nargs="+", help="target of each ranking")
    parser.add_argument(
        "--modes", required=True, nargs="+", choices=get_args(Mode), help="mode of each ranking"
    )
    parser.add_argument("--outcome", required=True, choices=OUTCOMES, help="what was explained")
    parser.add_argument("--unit", required=True, choices=get_args(Unit), help="what was judged")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
