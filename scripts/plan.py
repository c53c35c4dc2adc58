#!/usr/bin/env python
"""Print what a study will take: jobs, hours, wall time and disk."""

import argparse

from transfer_influence.config.settings import parse
from transfer_influence.config.study import Study
from transfer_influence.operation.estimate import stage_plans
from transfer_influence.operation.printing import plan_table
from transfer_influence.progress import command_line


def main() -> None:
    arguments = parser().parse_args()
    with command_line("plan"):
        study = parse(Study, arguments.settings)
        print(plan_table(study, stage_plans(study), sorted(set(arguments.at_once))))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="the whole study; as JSON")
    parser.add_argument(
        "--at-once",
        required=True,
        type=int,
        nargs="+",
        help="numbers of jobs at a time to give the wall time for",
    )
    return parser


if __name__ == "__main__":
    main()
