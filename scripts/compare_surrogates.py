#!/usr/bin/env python
"""Hold surrogates against the influences on one target, the retraining, and their costs."""

import argparse
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import AgreementStage
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.influence.measurements import read_measurements
from transfer_influence.outcomes.test_images import judged_images
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin
from transfer_influence.surrogates.agreement import write_agreement
from transfer_influence.surrogates.costs import read_costs

SEVERAL = {
    "scores": "tables of the surrogates",
    "retrained": "table of retrained models, if any",
    "sources": "tables of the source models",
    "transfers": "tables of their transfers",
    "full": "tables of models that saw all classes",
    "views": "images as these see them",
}


def main() -> None:
    arguments = parser().parse_args()
    with command_line("compare_surrogates"):
        stage = parse(AgreementStage, arguments.settings)
        names = [*SEVERAL, "influences", "reliability", "summary", "source", "labels"]
        inputs = {name: getattr(arguments, name) for name in names}
        origin = Origin.of(
            stage.model_dump(mode="json"),
            {name: given for name, given in inputs.items() if given},
            arguments.code,
        )
        data = read_measurements(
            arguments.summary,
            stage.influence.outcome,
            read_sidecar(arguments.source).classes,
            judged_images(stage.influence, arguments.labels),
            arguments.memory_gb,
        )
        costs = read_costs(
            sources=arguments.sources,
            transfers=arguments.transfers,
            full=arguments.full,
            checkpoints=stage.checkpoints,
            views=arguments.views,
            scores=dict(zip(stage.surrogates, arguments.scores, strict=True)),
            lists=stage.lists,
        )
        write_agreement(
            stage=stage,
            scores=arguments.scores,
            influences=arguments.influences,
            reliability=arguments.reliability,
            data=data,
            retrained=next(iter(arguments.retrained), None),
            costs=costs,
            memory_gb=arguments.memory_gb,
            output=arguments.output,
            provenance=origin.provenance(),
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="surrogates and influences; as JSON")
    for name, explained in SEVERAL.items():
        parser.add_argument(f"--{name}", type=Path, nargs="*", default=[], help=explained)
    parser.add_argument("--influences", required=True, type=Path, help="table of influences")
    parser.add_argument(
        "--reliability", required=True, type=Path, help="table of their reliability"
    )
    parser.add_argument("--summary", required=True, type=Path, help="outcomes of all models")
    parser.add_argument("--source", required=True, type=Path, help="source's dataset.json")
    parser.add_argument("--labels", required=True, type=Path, help="target's test.labels.npy")
    parser.add_argument("--memory-gb", type=float, default=4, help="memory to get by with")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
