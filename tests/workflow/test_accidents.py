"""Results know what made them, whatever happens to records of Snakemake and times of files.

After each accident the study is changed, and `snakemake -n` must plan the jobs that the change
concerns: none is missing and none is added by the accident.
"""

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import STUDY, Project
from tests.workflow.planned_jobs import HELD_OUT, summary_and_after, transfers_and_after
from transfer_influence.provenance import find_provenance

pytestmark = pytest.mark.timeout(900)
OLD = 1_000_000_000  # a time of long ago, in seconds


def change_a_recipe(project: Project) -> None:
    """Change the recipe of one target."""
    recipe = {**STUDY["targets"]["held_out"]["recipe"], "learning_rate": 0.05}
    target = {"modes": ["fixed"], "recipe": recipe}
    path = project.folder / "config" / "tiny.yaml"
    study = yaml.safe_load(path.read_text())
    study["targets"]["held_out"] = target
    path.write_text(yaml.safe_dump(study))


def lose_all_records(project: Project) -> None:
    shutil.rmtree(project.folder / ".snakemake")


def lose_some_records(project: Project) -> None:
    records = sorted(path for path in metadata(project).rglob("*") if path.is_file())
    for record in records[::2]:
        record.unlink()


def copy_without_records_or_times(project: Project) -> None:
    lose_all_records(project)
    give_times(project, lambda position: OLD + position * 7919 % 1000)


def give_old_times(project: Project) -> None:
    give_times(project, lambda position: OLD)


def give_times_against_the_flow(project: Project) -> None:
    """Make inputs newer than what was made from them."""
    give_times(project, lambda position: OLD - position)


def rename_the_study(project: Project) -> None:
    project.results.rename(project.results.with_name("renamed"))
    project.write_study(study="renamed")


def move_the_results(project: Project) -> None:
    (project.folder / "elsewhere").mkdir()
    project.results.rename(project.folder / "elsewhere" / "tiny")
    project.write_study(results="elsewhere")


def clean_up_metadata(project: Project) -> None:
    """Follow the hint that Snakemake prints where parameters have changed."""
    change_a_recipe(project)
    tables = [
        str(path.relative_to(project.folder))
        for path in project.results.rglob("[!.]*.parquet")
        if "examples" not in path.name
    ]
    run = project.snakemake("--cleanup-metadata", *tables)
    assert run.returncode == 0, run.stdout + run.stderr


def touch(project: Project) -> None:
    change_a_recipe(project)
    run = project.snakemake("--touch")
    assert run.returncode == 0, run.stdout + run.stderr


def leave_marks_of_a_killed_snakemake(project: Project) -> None:
    """Put back what Snakemake writes when it starts jobs, and lose what it writes when they end."""
    marks = project.folder / ".snakemake" / "incomplete"
    shutil.rmtree(marks, ignore_errors=True)
    shutil.copytree(metadata(project), marks)
    for mark in marks.rglob("*"):
        if mark.is_file():
            mark.write_text('{"external_jobid": null}')
    shutil.rmtree(metadata(project))


ACCIDENTS = [
    lose_all_records,
    lose_some_records,
    copy_without_records_or_times,
    give_old_times,
    give_times_against_the_flow,
    rename_the_study,
    move_the_results,
    clean_up_metadata,
    touch,
    leave_marks_of_a_killed_snakemake,
]


def metadata(project: Project) -> Path:
    return project.folder / ".snakemake" / "metadata"


def give_times(project: Project, time: Callable[[int], float]) -> None:
    """Give each result a time, from its position among those as they were made."""
    files = (path for path in project.results.rglob("*") if path.is_file())
    made = sorted(files, key=lambda path: path.stat().st_mtime_ns)
    for position, path in enumerate(made):
        os.utime(path, (time(position), time(position)))


def test_the_records_of_all_results_hold_what_these_say_of_themselves(finished):
    rules = set()
    for record in records(finished).values():
        told = json.loads(record["params"][0])
        carried = find_provenance(finished.folder / told.pop("account"))
        assert carried is not None
        assert told == {key: carried[key] for key in told}
        assert {"settings", "inputs", "code"} <= set(told)
        rules.add(record["rule"])
    ran = {path.name.removesuffix(".log") for path in (finished.results / "logs").iterdir()}
    assert rules == ran


def test_one_output_of_each_job_vouches_for_all_others(finished):
    outputs: dict[str, set[str]] = {}
    companions: dict[str, set[str]] = {}
    for file, record in records(finished).items():
        told = json.loads(record["params"][0])
        outputs.setdefault(told["account"], set()).add(Path(file).name)
        companions[told["account"]] = set(told.get("companions", {}))
    for account, files in outputs.items():
        assert companions[account] == files - {Path(account).name}


def records(project: Project) -> dict[str, dict[str, Any]]:
    """Return the records of Snakemake by the file that each is about."""
    found = {}
    for path in metadata(project).rglob("*"):
        if path.is_file():
            parts = path.relative_to(metadata(project)).parts
            encoded = "".join(part.removeprefix("@") for part in parts)
            found[base64.b64decode(encoded, b"_-").decode()] = json.loads(path.read_text())
    return found


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_after_an_accident_a_change_plans_just_what_it_concerns(finished_copy, accident):
    accident(finished_copy)
    change_a_recipe(finished_copy)
    assert finished_copy.planned() == transfers_and_after(*HELD_OUT)


def test_a_result_restored_from_a_backup_is_kept_if_it_is_the_same(finished_copy):
    summary = finished_copy.results / "summaries" / "photos" / "full.parquet"
    os.utime(summary, (OLD, OLD))
    assert finished_copy.planned() == set()


def test_a_result_restored_from_another_one_is_made_again(finished_copy):
    summaries = finished_copy.results / "summaries" / "photos"
    shutil.copyfile(summaries / "fixed.parquet", summaries / "full.parquet")
    os.utime(summaries / "full.parquet", (OLD, OLD))
    planned = finished_copy.planned()
    assert planned == summary_and_after("photos, full")


def test_a_table_of_the_report_restored_from_another_one_is_made_again(finished_copy):
    report = finished_copy.results / "report" / "photos"
    shutil.copyfile(report / "fixed" / "classes.csv", report / "full" / "classes.csv")
    os.utime(report / "full" / "classes.csv", (OLD, OLD))
    assert finished_copy.planned() == {
        "List the most helpful and most harmful classes for photos, full"
    }


def test_a_dry_run_says_in_plain_words_why_and_changes_no_file(finished_copy):
    lose_all_records(finished_copy)
    change_a_recipe(finished_copy)
    finished_copy.planned()  # makes Snakemake's own folders
    before = state(finished_copy)
    run = finished_copy.snakemake("--dry-run")
    said = "made with recipe.learning_rate 0.1; the study says 0.05"
    assert said in run.stdout + run.stderr
    assert "missing provenance" not in run.stdout + run.stderr
    assert state(finished_copy) == before


def state(project: Project) -> dict[Path, tuple[int, int]]:
    """Return size and time of all files but the caches of what the last look has seen."""
    files = (path for path in project.folder.rglob("*") if path.is_file())
    kept = [path for path in files if not {"iocache", "listings"} & set(path.parts)]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in kept}


def test_a_run_writes_the_records_that_were_lost(finished_copy):
    leave_marks_of_a_killed_snakemake(finished_copy)
    run = finished_copy.snakemake()
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Nothing to be done" in run.stdout + run.stderr
    assert any(path.is_file() for path in metadata(finished_copy).rglob("*"))
    marks = finished_copy.folder / ".snakemake" / "incomplete"
    assert not [path for path in marks.rglob("*") if path.is_file()]


def test_images_restored_from_a_backup_that_are_others_are_converted_again(finished_copy):
    """Uncompressed images of one size take the same room, whatever they show."""
    images = finished_copy.results / "data" / "held_out" / "test.beton"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    os.utime(images, (OLD, OLD))
    run = finished_copy.snakemake("--dry-run")
    said = run.stdout + run.stderr
    assert "held_out/test.beton is not the one that" in said
    assert "Convert the images of held_out" in said
