#!/usr/bin/env python
"""Draw the rules that a study needs, and what flows between them."""

import argparse
import subprocess
import sys
from pathlib import Path

from transfer_influence.config.settings import parse
from transfer_influence.config.stages import RulegraphStage
from transfer_influence.files import atomic
from transfer_influence.progress import command_line
from transfer_influence.provenance import Origin, sign_svg, with_companions


def main() -> None:
    arguments = parser().parse_args()
    with command_line("draw_rulegraph"):
        stage = parse(RulegraphStage, arguments.settings)
        inputs = {"snakefile": arguments.snakefile, "rules": arguments.rules}
        origin = Origin.of(stage.model_dump(mode="json"), inputs, arguments.code)
        draw(arguments, origin)


def draw(arguments: argparse.Namespace, origin: Origin) -> None:
    """Write the graph as Graphviz has it and as two pictures, the SVG last."""
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(arguments.snakefile)]
    study = ["--configfile", *map(str, arguments.study)]
    with atomic(arguments.dot) as path, path.open("w") as dot:
        subprocess.run([*snakemake, *study, "--rulegraph", "dot"], stdout=dot, check=True)
    with atomic(arguments.png) as path:
        subprocess.run(["dot", "-Tpng", "-Gdpi=96", arguments.dot, "-o", path], check=True)
    companions = {path.name: path for path in (arguments.dot, arguments.png)}
    with atomic(arguments.svg) as path:
        subprocess.run(["dot", "-Tsvg", arguments.dot, "-o", path], check=True)
        sign_svg(path, with_companions(origin.provenance(), companions))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="what decides which rules; as JSON")
    parser.add_argument("--snakefile", required=True, type=Path, help="the Snakefile")
    parser.add_argument("--rules", required=True, type=Path, nargs="+", help="files it includes")
    parser.add_argument("--study", required=True, type=Path, nargs="+", help="the study's files")
    parser.add_argument("--svg", required=True, type=Path, help="SVG file to write")
    parser.add_argument("--png", required=True, type=Path, help="PNG file to write")
    parser.add_argument("--dot", required=True, type=Path, help="Graphviz file to write")
    parser.add_argument("--code", default="", help="digest of the code, for provenance")
    return parser


if __name__ == "__main__":
    main()
