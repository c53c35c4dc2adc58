"""A study that grows under its controller, without a cluster: too long for the everyday tests."""

import re

import pandas as pd
import yaml

from tests.workflow.conftest import STUDY, write_project


def test_a_study_grows_by_blocks_until_no_more_models_are_allowed(tmp_path):
    """Each block is trained once, and the study is finished with all of them."""
    project = write_project(tmp_path)
    project.write_study(
        models=22,
        models_per_job=11,
        source={**STUDY["source"], "subset": {"sampling": "balanced"}},
        targets={"held_out": STUDY["targets"]["held_out"]},
        counterfactuals=None,
    )
    launch = ("config/tiny.yaml", "--cluster", "local", "--follow", "--until-reliability", "0.999")
    run = project.run_script("launch.py", *launch, "--at-most", "50")
    assert run.returncode == 0, run.stdout + run.stderr
    said = [line.partition("controller: ")[2] for line in run.stdout.splitlines()]
    rounds = ("reliability of", "goes on", "no more models", "set models")
    assert [line for line in said if line.startswith(rounds)] == [
        "reliability of 22 models:",
        "goes on to models: 44",
        "reliability of 44 models:",
        "no more models are allowed; goes on with models: 44",
        "set models: 44 in its file to keep it so",
    ]
    assert re.search(r"^    held_out, fixed: 0\.\d+ \[0\.\d+, 0\.\d+\]$", run.stdout, re.MULTILINE)
    assert run.stdout.count("Train source models") == 4
    assert len(pd.read_parquet(project.results / "summaries/held_out/fixed.parquet")) == 44
    assert (project.results / "report/held_out/fixed/reliability.svg").exists()
    # Nothing is left to do for a study of so many models.
    study = yaml.safe_load((project.folder / "config/tiny.yaml").read_text())
    project.write_study(**{**study, "models": 44})
    assert project.planned() == set()
