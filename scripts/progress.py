#!/usr/bin/env python
"""Show how far a study is, from its files alone: it may run elsewhere."""

import argparse
import sys
import time
from pathlib import Path

from transfer_influence.config.study import Study, read_study
from transfer_influence.errors import UserError
from transfer_influence.operation.census import census
from transfer_influence.operation.printing import progress_table


def main() -> None:
    arguments = parser().parse_args()
    try:
        study = read_study(arguments.study)
        is_done = show(study)
        while arguments.follow and not is_done:
            time.sleep(arguments.every)
            if sys.stdout.isatty():
                print("\033[H\033[2J", end="")  # go to the top of an empty screen
            is_done = show(study)
    except UserError as error:
        sys.exit(f"progress.py: {error}")
    except KeyboardInterrupt:  # how one stops to follow
        sys.exit(130)


def show(study: Study) -> bool:
    """Print how far the study is; return whether it is done."""
    now = time.time()
    stages = census(study)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now))}  study {study.study}\n")
    print(progress_table(stages, now), end="\n\n", flush=True)
    return all(stage.is_done for stage in stages)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "study", type=Path, nargs="+", help="file of the study, such as config/mine.yaml, or files"
    )
    parser.add_argument("--follow", action="store_true", help="show it again until it is done")
    parser.add_argument(
        "--every", type=float, default=10, help="seconds, for --follow (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    main()
