"""What is on record of a study that has run, and what a change of it would run again."""

import base64
from pathlib import Path
from typing import Any

from tests.workflow.conftest import Project

DATA = ("Convert the images of", "Draw some images of", "Draw the rule graph")


def recorded(project: Project) -> set[str]:
    """Return the files of which Snakemake has a record."""
    folder = project.folder / ".snakemake" / "metadata"
    # A name that is too long for a file's is cut, and all pieces but the last begin with "@".
    names = [
        "".join(part.removeprefix("@") for part in path.relative_to(folder).parts)
        for path in folder.rglob("*")
        if path.is_file()
    ]
    return {base64.urlsafe_b64decode(name).decode() for name in names}


def outputs(project: Project) -> set[str]:
    """Return all files that the jobs of a study write, by Snakemake's own account."""
    run = project.snakemake("--summary")
    assert run.returncode == 0, run.stderr
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return {row[0] for row in rows if row[0].startswith("results/")}


def marked_incomplete(project: Project) -> list[Path]:
    folder = project.folder / ".snakemake" / "incomplete"
    return [path for path in folder.rglob("*") if path.is_file()]


def assert_all_on_record(project: Project) -> None:
    """Check that nothing is left to do, and that every result has a record and no mark."""
    run = project.snakemake("--dry-run")
    assert "Nothing to be done" in run.stdout + run.stderr, run.stdout + run.stderr
    assert "missing provenance/metadata" not in run.stdout + run.stderr
    assert outputs(project)
    assert outputs(project) - recorded(project) == set()
    assert marked_incomplete(project) == []


def assert_change_plans_all_training(
    project: Project, study: dict[str, Any], everything: set[str]
) -> None:
    """Check that another recipe of source models plans all that trains them and all after it.

    Args:
        project: its study has run; it is put back at the end.
        study: the study.
        everything: the jobs of the study when nothing has run.
    """
    recipe = {**study["source"]["recipe"], "learning_rate": 0.05}
    project.write_study(**{**study, "source": {**study["source"], "recipe": recipe}})
    planned = project.planned()
    project.write_study(**study)
    assert planned == {job for job in everything if not job.startswith(DATA)}
    assert len(planned) > len(everything) / 2
    assert project.planned() == set()
