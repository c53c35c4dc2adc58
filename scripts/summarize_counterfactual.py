#!/usr/bin/env python
"""Put all retrained models of one (target, mode) into one table, and sum up their curves."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import CurvesStage
from transfer_influence.counterfactual.curves import write_summary
from transfer_influence.counterfactual.tables import summarize_counterfactual
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin, with_companions


def main() -> None:
    arguments = parser().parse_args()
    with command_line("summarize_counterfactual"):
        stage = parse(CurvesStage, arguments.settings)
        inputs = {
            "transfers": arguments.transfers,
            "sources": arguments.sources,
            "labels": arguments.labels,
        }
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        summarize_counterfactual(
            transfers=arguments.transfers,
            sources=arguments.sources,
            images=judged_images(stage, arguments.labels),
            failed_models=stage.failed_models,
            output=arguments.output,
            provenance=origin.provenance(),
        )
        companions = {arguments.output.name: arguments.output}
        provenance = with_companions(origin.provenance(), companions)
        write_summary(arguments.output, arguments.summary, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transfers", required=True, type=Path, nargs="+", help="one a removal")
    parser.add_argument("--sources", required=True, type=Path, nargs="+", help="in the same order")
    parser.add_argument("--labels", required=True, type=Path, help="target's test.labels.npy")
    parser.add_argument(
        "--settings", required=True, help="how test images are divided, and failures met; as JSON"
    )
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--summary", required=True, type=Path, help="Parquet file to write, too")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
