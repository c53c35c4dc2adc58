#!/usr/bin/env python
"""Accept results of earlier code: you vouch that the code of today computes the same.

After that they are up to date as far as code goes. Changed settings and data still make results
stale. What you accepted stands in {results}/{study}/accepted_code.json; delete the file to take it
back.
"""

import argparse
from pathlib import Path

from transfer_influence.config.study import read_study
from transfer_influence.operation.acceptance import accept, older_code
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("accept_code"):
        study = read_study(arguments.study)
        older = list(older_code(study, Path(__file__).parent))
        for one in older:
            print(f"{one.rule}: {one.results} made by code {one.digest}; it is {one.now} now")
        if not older:
            print(
                "All results were made by the code of today, or by code that you accepted before."
            )
        elif not arguments.dry_run:
            accept(study, older)
            print("Accepted.")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "study", type=Path, nargs="+", help="the study's file, such as config/demo.yaml, or files"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be accepted, only")
    return parser


if __name__ == "__main__":
    main()
