"""The list of a study's files is the one that Snakemake plans, whatever the study."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.workflow.conftest import CHECKOUT, RECIPE, STUDY, Project
from transfer_influence.config.dataset import find_with_parts
from transfer_influence.config.study import Study, read_study
from transfer_influence.results import CALIBRATIONS, RULES, job_groups

pytestmark = pytest.mark.timeout(900)

HELD_OUT = {"held_out": {"modes": ["full"], "recipe": RECIPE}}
SHIPPED = [
    ("demo",),
    ("paper",),
    ("paper", "paper-more-targets"),
    ("paper-examples",),
    ("paper-fast",),
]


def with_bank(project: Project) -> dict[str, Any]:
    """A study of source models that exist already: empty files stand in for them."""
    np.save(project.folder / "masks.npy", np.eye(8, 10, dtype=bool))
    for model in range(STUDY["models"]):
        (project.folder / f"{model}.pt").touch()
    source = {**STUDY["source"], "checkpoints": "{model}.pt", "masks": "masks.npy"}
    return {"source": source}


def with_lists(project: Project) -> dict[str, Any]:
    (project.folder / "round.txt").write_text("0\n3\n8\n")
    return {"counterfactuals": {**STUDY["counterfactuals"], "lists": {"round": "round.txt"}}}


def picked_by_hand(project: Project) -> dict[str, Any]:
    (project.folder / "kept.txt").write_text("0\n3\n8\n")
    source = {**STUDY["source"], "subset": {"keep": "kept.txt"}}
    return {"source": source, "counterfactuals": None}


def with_surrogates(project: Project) -> dict[str, Any]:
    (project.folder / "photos.txt").write_text("3\n")
    (project.folder / "held_out.txt").write_text("4\n")
    orders = ["top", "random", "leep", "mine"]
    return {
        "surrogates": {"lists": {"mine": "{target}.txt"}},
        "counterfactuals": {**STUDY["counterfactuals"], "orders": orders},
    }


KINDS: dict[str, Callable[[Project], dict[str, Any]]] = {
    "classes": lambda project: {},
    "more models than shards hold": lambda project: {"models": 9},
    "examples": lambda project: {"source": {**STUDY["source"], "subset": {"unit": "example"}}},
    "one target": lambda project: {"targets": HELD_OUT},
    "no counterfactuals": lambda project: {"counterfactuals": None},
    "two estimators": lambda project: {"influence": {"estimators": ["ridge", "lasso"]}},
    "a bank": with_bank,
    "lists": with_lists,
    "picked by hand": picked_by_hand,
    "surrogates": with_surrogates,
    "surrogates alone": lambda project: {"surrogates": {}, "counterfactuals": None},
    "no surrogate but a list": lambda project: (
        with_surrogates(project)
        | {
            "surrogates": {"methods": [], "lists": {"mine": "{target}.txt"}},
            "counterfactuals": None,
        }
    ),
}


def planned(folder: Path, *arguments: str) -> set[tuple[str, str]]:
    """Return the files that Snakemake plans, each with its rule."""
    run = Project(folder).snakemake("--summary", *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    header, *lines = [line.split("\t") for line in run.stdout.splitlines() if "\t" in line]
    file, rule = header.index("output_file"), header.index("rule")
    return {(line[rule], line[file]) for line in lines}


def listed(study: Study) -> set[tuple[str, str]]:
    return {
        (group.rule, str(study.folder / file))
        for group in job_groups(study)
        for job in group.jobs
        for file in job.files.values()
    }


def assert_listed(found: set[tuple[str, str]], study: Study) -> None:
    unknown = sorted(found - listed(study))
    assert not unknown, (
        f"rule {unknown[0][0]} makes {unknown[0][1]}, which workflow/transfer_influence/results.py "
        f"does not have: add the rule to RULES there, with its files and jobs"
    )
    needless = sorted(listed(study) - found)
    assert not needless, (
        f"workflow/transfer_influence/results.py has {needless[0][1]} of rule {needless[0][0]}, "
        f"which no rule makes: correct RULES there"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_study_are_those_that_snakemake_plans(project, kind, monkeypatch):
    path = project.write_study(**KINDS[kind](project))
    monkeypatch.chdir(project.folder)  # which lists are named from
    assert_listed(planned(project.folder), read_study([path]))


@pytest.mark.parametrize("names", SHIPPED, ids="+".join)
def test_the_files_of_the_shipped_studies_are_those_that_snakemake_plans(project, names):
    study = read_study([CHECKOUT / "config" / f"{name}.yaml" for name in names])
    small = Study.model_validate(study.model_dump() | {"models": 2 * study.models_per_job})
    path = project.folder / "config" / "tiny.yaml"
    path.write_text(yaml.safe_dump(small.model_dump(mode="json", exclude_unset=True)))
    shutil.copytree(CHECKOUT / "config" / "lists", project.folder / "config" / "lists")
    for name in study.datasets:
        for settings, _ in find_with_parts(name, [CHECKOUT / "config" / "datasets"]).values():
            for _, place in settings.places:
                (project.folder / place).mkdir(parents=True, exist_ok=True)
    assert_listed(planned(project.folder), small)


def test_the_calibrations_are_those_that_snakemake_plans(project):
    study = read_study([project.folder / "config" / "tiny.yaml"])
    found = {pair for pair in planned(project.folder, "plan") if pair[0] not in RULES}
    calibrated = [{}] + [{"target": target, "mode": mode} for target, mode in study.transfers]
    assert found == {
        (rule, str(study.folder / pattern.format(**wildcards)))
        for wildcards in calibrated
        for rule, pattern in CALIBRATIONS.items()
        if ("{target}" in pattern) == bool(wildcards)
    }
