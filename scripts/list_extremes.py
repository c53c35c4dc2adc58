#!/usr/bin/env python
"""List the source classes that help a target most, and those that hurt it most."""

import argparse
from pathlib import Path

from transfer_influence.applications.classes import list_extremes
from transfer_influence.figures.tables import save_listing
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("list_extremes"):
        origin = Origin.of({}, {"ranking": arguments.ranking}, arguments.code)
        table = list_extremes(arguments.ranking)
        save_listing(table, arguments.output, arguments.csv, origin.provenance())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranking", required=True, type=Path, help="table of ranked classes")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--csv", required=True, type=Path, help="CSV file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
