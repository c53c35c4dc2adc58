#!/usr/bin/env python
"""Put the outcomes of all shards of one (target, mode) into one checked table."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import SummaryStage
from transfer_influence.outcomes.summary import summarize
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin


def main() -> None:
    arguments = parser().parse_args()
    with command_line("summarize"):
        stage = parse(SummaryStage, arguments.settings)
        inputs = {"transfers": arguments.transfers, "sources": arguments.sources}
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        summarize(
            transfers=arguments.transfers,
            sources=arguments.sources,
            models=stage.models,
            failed_models=stage.failed_models,
            output=arguments.output,
            provenance=origin.provenance(),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", required=True, type=Path, nargs="+", help="one a shard")
    parser.add_argument("--sources", required=True, type=Path, nargs="+", help="in the same order")
    parser.add_argument(
        "--settings",
        required=True,
        help='JSON: "models", how many to keep; "failed_models", "stop" or "exclude"',
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
