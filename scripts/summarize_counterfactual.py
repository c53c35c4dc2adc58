#!/usr/bin/env python
"""Put all retrained models of one (target, mode) into one table, and sum up their curves."""

import argparse
from pathlib import Path
from typing import get_args

from transfer_influence.config.study import FailedModels
from transfer_influence.counterfactual.curves import write_summary
from transfer_influence.counterfactual.tables import summarize_counterfactual
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("summarize_counterfactual"):
        settings = {"failed_models": arguments.failed_models}
        provenance = Origin(settings, {}, arguments.code).provenance()
        summarize_counterfactual(
            transfers=arguments.transfers,
            sources=arguments.sources,
            failed_models=arguments.failed_models,
            output=arguments.output,
            provenance=provenance,
        )
        write_summary(arguments.output, arguments.summary, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", required=True, type=Path, nargs="+", help="one a removal")
    parser.add_argument("--sources", required=True, type=Path, nargs="+", help="in the same order")
    parser.add_argument(
        "--failed-models",
        choices=get_args(FailedModels),
        default="stop",
        help="what to do about models whose training failed (default: %(default)s)",
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--summary", required=True, type=Path, help="Parquet file to write, too")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
