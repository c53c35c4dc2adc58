#!/usr/bin/env python
"""Rank the source classes or examples by their influence on a whole target."""

import argparse
from pathlib import Path

from transfer_influence.influence.ranking import write_ranking
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("rank_units"):
        origin = Origin.of({}, {"influences": arguments.influences}, arguments.code)
        write_ranking(arguments.influences, arguments.output, origin.provenance())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--influences", required=True, type=Path, help="table of influences")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
