#!/usr/bin/env python
"""Convert a data set to FFCV's .beton format, once, with a sidecar that describes it."""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import Unit
from transfer_influence.datasets.conversion import convert
from transfer_influence.progress import command_line


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Writes {train,test}.beton, {train,test}.labels.npy, {train,test}.examples.parquet "
        "and, last, dataset.json.",
    )
    parser.add_argument("--dataset", required=True, metavar="NAME", help="name of the data set")
    parser.add_argument(
        "--datasets-folder",
        required=True,
        nargs="+",
        type=Path,
        metavar="DIR",
        help="where to look for NAME.yaml; the first folder that has it counts",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder to write to"
    )
    parser.add_argument(
        "--unit",
        choices=get_args(Unit),
        default="class",
        help="what the study judges (default: %(default)s)",
    )
    parser.add_argument(
        "--least",
        type=int,
        default=2,
        metavar="N",
        help="number of those that the study needs at least (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=1, help="threads that read images (default: %(default)s)"
    )
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    arguments = parser.parse_args()
    with command_line("convert_dataset"):
        convert(
            arguments.dataset,
            arguments.datasets_folder,
            arguments.output,
            arguments.unit,
            arguments.least,
            arguments.workers,
            arguments.code,
        )


if __name__ == "__main__":
    main()
