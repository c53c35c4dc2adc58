#!/usr/bin/env python
"""Compare every original file of a study's data sets with what was converted.

Without --content, files whose size and time are as they were count as unchanged. The exit status is
0 if nothing has changed, and 1 otherwise.
"""

import argparse
import sys
from pathlib import Path

from transfer_influence.config.dataset import find_with_parts
from transfer_influence.config.study import Study, read_study
from transfer_influence.datasets.originals import NAME, Changes, Originals, find_changes
from transfer_influence.progress import command_line
from transfer_influence.results import data_folder

CHECKOUT = Path(__file__).resolve().parents[1]
NAMED = 20  # files of each kind that are named


def main() -> None:
    arguments = parser().parse_args()
    with command_line("check_originals"):
        study = read_study(arguments.study)
        folders = [path.parent / "datasets" for path in arguments.study]
        folders.append(CHECKOUT / "config" / "datasets")
        same = [check(study, name, folders, arguments.content) for name in study.datasets]
    sys.exit(not all(same))


def check(study: Study, name: str, folders: list[Path], by_content: bool) -> bool:
    """Print how the originals of a data set differ; return whether they do not."""
    if not data_folder(study, name).joinpath("dataset.json").exists():
        print(f"{name}: not converted yet", flush=True)
        return True
    kept = Originals.read(data_folder(study, name) / NAME)
    parts = [part for part, _ in find_with_parts(name, folders).values()]
    changes = find_changes(kept, parts, by_content=by_content)
    print(f"{name}: {changes.total} files, {state(changes)}")
    for kind, paths in {
        "changed": changes.changed,
        "came": changes.came,
        "went": changes.went,
        "only touched": changes.touched,
    }.items():
        if paths:
            more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
            print(f"  {len(paths)} {kind}: {', '.join(paths[:NAMED])}{more}")
    sys.stdout.flush()
    return not changes


def state(changes: Changes) -> str:
    """Return whether a data set has changed, as far as can be told."""
    if changes:
        return "changed"
    if changes.out_of_reach:
        return (
            f"of which {changes.out_of_reach} cannot be reached; nothing is known to have changed"
        )
    return "as converted"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "study", type=Path, nargs="+", help="file of the study, such as config/mine.yaml, or files"
    )
    parser.add_argument(
        "--content",
        action="store_true",
        help="read every file, even where its size and time are as they were",
    )
    return parser


if __name__ == "__main__":
    main()
