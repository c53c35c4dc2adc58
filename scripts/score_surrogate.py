#!/usr/bin/env python
"""Rank the source classes for one target by a cheap method, or by a list."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import SurrogateStage
from transfer_influence.datasets.sidecar import read_labels, read_sidecar
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin
from transfer_influence.surrogates.scores import (
    listed_scores,
    read_views,
    score_classes,
    write_scores,
)


def main() -> None:
    arguments = parser().parse_args()
    with command_line("score_surrogate"):
        started = time.monotonic()
        stage = parse(SurrogateStage, arguments.settings)
        names = read_sidecar(arguments.source).classes
        inputs: dict[str, Path | Sequence[Path]] = {"source": arguments.source}
        if stage.method is None:
            inputs["listed"] = arguments.listed
            scores = listed_scores(arguments.listed, names)
        else:
            given = ("source_view", "target_view", "source_labels", "target_labels")
            inputs |= {name: getattr(arguments, name) for name in given}
            views = read_views(
                source=arguments.source_view,
                target=arguments.target_view,
                source_labels=read_labels(arguments.source_labels),
                target_labels=read_labels(arguments.target_labels),
                classes=len(names),
            )
            scores = score_classes(stage.method, views)
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        provenance = origin.provenance(seconds=time.monotonic() - started)
        write_scores(scores, names, arguments.output, provenance)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help='JSON: "method", null for a list')
    parser.add_argument("--source", required=True, type=Path, help="source's dataset.json")
    parser.add_argument("--listed", type=Path, help="list of classes, the most helpful first")
    parser.add_argument("--source-view", type=Path, help="source images as full models see them")
    parser.add_argument("--target-view", type=Path, help="target images as full models see them")
    parser.add_argument("--source-labels", type=Path, help="source's train.labels.npy")
    parser.add_argument("--target-labels", type=Path, help="target's train.labels.npy")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
