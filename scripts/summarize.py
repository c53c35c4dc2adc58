#!/usr/bin/env python
"""Put the outcomes of all shards of one (target, mode) into one checked table."""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import FailedModels
from transfer_influence.outcomes.summary import summarize
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("summarize"):
        settings = {"models": arguments.models, "failed_models": arguments.failed_models}
        summarize(
            transfers=arguments.transfers,
            sources=arguments.sources,
            models=arguments.models,
            failed_models=arguments.failed_models,
            output=arguments.output,
            provenance=Origin(settings, {}, arguments.code).provenance(),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", required=True, type=Path, nargs="+", help="one a shard")
    parser.add_argument("--sources", required=True, type=Path, nargs="+", help="in the same order")
    parser.add_argument("--models", required=True, type=int, help="number of models to keep")
    parser.add_argument(
        "--failed-models",
        choices=get_args(FailedModels),
        default="stop",
        help="what to do about models whose training failed (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
