"""Watching and planning a study that runs through the real DAG."""

import re
import subprocess
import sys

import pytest

from tests.workflow.conftest import CHECKOUT
from transfer_influence.results import RULES

# A whole study runs in some of these.
pytestmark = pytest.mark.timeout(900)


def progress_of(project, *arguments: str) -> list[list[str]]:
    """Return the words of each line that the progress program prints."""
    script = str(CHECKOUT / "scripts/progress.py")
    run = subprocess.run(
        [sys.executable, script, "config/tiny.yaml", *arguments],
        cwd=project.folder,
        env={"PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return [line.split() for line in run.stdout.splitlines()]


def test_a_finished_study_is_seen_as_done_and_no_longer_followed(finished):
    lines = progress_of(finished, "--follow")
    assert ["source", "models", "8", "8", "100", "done"] in lines
    assert ["all", "models", *["52"] * 2, "100", "done"] in lines
    assert ["photos,", "full", *["done"] * 11] in lines
    assert not [line for line in lines if "–" in line]


def test_after_more_models_are_asked_for_some_are_to_do(finished):
    finished.write_study(models=12)
    lines = progress_of(finished)
    (line,) = [line for line in lines if line[:2] == ["source", "models"]]
    assert line[2:5] == ["8", "12", "66"]


def counted(project) -> dict[str, int]:
    """Return how many jobs of each rule a dry run counts."""
    run = project.snakemake("--dry-run", "--quiet", "reason")
    assert run.returncode == 0, run.stdout + run.stderr
    counts = re.findall(r"^([a-z_]+) +(\d+)$", run.stdout + run.stderr, re.MULTILINE)
    return {rule: int(count) for rule, count in counts if rule not in ("all", "total")}


def plan_of(project) -> dict[str, list[str]]:
    """Return the words of each line that the plan prints, by the first one."""
    run = project.snakemake("plan")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


def test_a_plan_counts_the_jobs_that_snakemake_plans(project):
    planned = counted(project)
    said = plan_of(project)
    assert {rule: int(said[rule][0].replace(",", "")) for rule in RULES if rule in said} == planned
    for rule in ("train_sources", "transfer", "counterfactual_source", "counterfactual_transfer"):
        jobs, models, hours, jobs_left, models_left, hours_left = said[rule][:6]
        assert (jobs, models, hours) == (jobs_left, models_left, hours_left)
        assert float(hours) > 0
        assert said[rule][-3:] == ["calibration", "on", "cpu"]
    left = counted(project)  # converted by now, and no more than that
    del planned["convert_dataset"]
    assert left == planned


def test_a_plan_of_a_finished_study_is_known_from_its_jobs(finished_copy):
    said = plan_of(finished_copy)
    for rule in set(RULES) & set(said):
        jobs = int(said[rule][0])
        assert "calibration" not in said[rule]
        assert said[rule][-3:] == [str(jobs), "past", "jobs" if jobs > 1 else "job"]
    assert said["train_sources"][3:6] == ["0", "0", "0.000"]
    assert not (finished_copy.results / "plan").exists()
