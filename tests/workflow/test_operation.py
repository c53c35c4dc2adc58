"""Watching and planning a study that runs through the real DAG."""

import subprocess
import sys

import pytest

from tests.workflow.conftest import CHECKOUT

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
    return [line.split() for line in run.stdout.splitlines()]


def test_a_finished_study_is_seen_as_done_and_no_longer_followed(finished):
    lines = progress_of(finished, "--follow")
    assert ["source", "models", "8", "8", "100", "done"] in lines
    assert ["all", "models", *["72"] * 2, "100", "done"] in lines
    assert ["photos,", "full", *["done"] * 6] in lines
    assert not [line for line in lines if "–" in line]


def test_after_more_models_are_asked_for_some_are_to_do(finished):
    finished.write_study(models=12)
    lines = progress_of(finished)
    (line,) = [line for line in lines if line[:2] == ["source", "models"]]
    assert line[2:5] == ["8", "12", "66"]
