import ast
import json
import os
import runpy
import subprocess
import sys

import pytest
import yaml
from tests.conftest import CHECKOUT

from transfer_influence.config.stages import influence_stage
from transfer_influence.config.study import check_study

SCRIPTS = sorted((CHECKOUT / "scripts").glob("*.py"))
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def purpose(script) -> str:
    docstring = ast.get_docstring(ast.parse(script.read_text()))
    assert docstring
    return " ".join(docstring.splitlines()[0].split())


@each_script
def test_help_names_the_purpose(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: {script.name}")
    assert purpose(script) in shown


@each_script
def test_a_rule_can_call_it_by_its_name(script):
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env python\n")


@each_script
def test_a_missing_argument_is_said_without_a_traceback(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 2
    assert "the following arguments are required" in capsys.readouterr().err


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CHECKOUT / "scripts" / script), *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT / "workflow")},
        capture_output=True,
        text=True,
        check=False,
    )


MISSING = [
    *("--source", "no.json", "--summary", "no.parquet", "--labels", "no.npy"),
    *("--output", "out.parquet"),
]
STUDY = check_study(yaml.safe_load((CHECKOUT / "config" / "demo.yaml").read_text()), "demo.yaml")
BAD = json.dumps(
    {**influence_stage(STUDY, "uci_digits", "ridge").model_dump(), "estimator": "ridges"}
)


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        (
            "rank_units.py",
            ["--influences", "no.parquet", "--output", "out.parquet"],
            "no.parquet: no such file; run the job that makes it again.",
        ),
        (
            "estimate_influence.py",
            ["--settings", "{", *MISSING],
            "--settings: not valid JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)); correct it.",
        ),
        (
            "estimate_influence.py",
            ["--settings", BAD, *MISSING],
            "--settings: estimator: 'ridges' is not valid: input should be 'difference_in_means', "
            "'ridge' or 'lasso'; correct it.",
        ),
    ],
    ids=["missing file", "no JSON", "bad value"],
)
def test_a_mistake_is_one_line_and_status_1(script, arguments, sentence, tmp_path):
    found = run(script, *arguments)
    assert found.returncode == 1
    assert found.stdout == ""
    start, line = found.stderr.splitlines()
    assert f" INFO {script.removesuffix('.py')} starts: process " in start
    assert line.endswith(f" ERROR {sentence}")


def test_a_program_that_people_watch_says_a_mistake_and_nothing_else():
    found = run("progress.py", "no.yaml")
    assert found.returncode == 1
    assert (found.stdout, found.stderr) == (
        "",
        "progress.py: no.yaml: no such file; check the path.\n",
    )
