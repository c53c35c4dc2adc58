"""What keeps the code readable: how far it is to a step of training, and how calls are written."""

import ast
import json
import runpy
import sys
import traceback
from pathlib import Path

import pytest
from tests.conftest import CHECKOUT, recipe_values

from transfer_influence.training import optimization

CODE = ("scripts", "workflow", "tests", "benchmarks")
TRAINING = CHECKOUT / "workflow" / "transfer_influence" / "training"


def test_from_the_program_to_a_step_of_its_optimizer_it_is_five_files(
    planted, tmp_path, monkeypatch
):
    settings = {
        "seed": 0,
        "subset": {"fraction": 0.5},
        "architecture": {"width": 4},
        "recipe": recipe_values(epochs=1),
    }
    passed: set[Path] = set()
    sgd = optimization.sgd

    def watched(*arguments: object, **others: object) -> None:
        files = (Path(frame.filename) for frame in traceback.extract_stack())
        ours = [CHECKOUT / part for part in ("scripts", "workflow")]
        passed.update(file for file in files if set(ours) & set(file.parents))
        sgd(*arguments, **others)

    monkeypatch.setattr(optimization, "sgd", watched)
    program = CHECKOUT / "scripts" / "train_sources.py"
    arguments = {
        "settings": json.dumps(settings),
        "shard": "000000-000000",
        "data": planted,
        "weights": tmp_path / "shard.safetensors",
        "table": tmp_path / "shard.parquet",
    }
    words = [f"--{name}={value}" for name, value in arguments.items()]
    monkeypatch.setattr(sys, "argv", [str(program), *words])
    runpy.run_path(str(program), run_name="__main__")
    assert program in passed
    assert len(passed) <= 5, passed


@pytest.mark.parametrize("name", ["sources", "imports", "transfers"])
def test_what_happens_to_each_model_of_a_shard_is_told_in_150_lines(name):
    assert len((TRAINING / f"{name}.py").read_text().splitlines()) <= 150


def test_no_call_is_packed_to_fit_a_line():
    files = [file for part in CODE for file in sorted((CHECKOUT / part).rglob("*.py"))]
    packed = [
        f"{file.relative_to(CHECKOUT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and any(map(is_packed, node.args))
    ]
    assert packed == []


def is_packed(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Starred) and isinstance(argument.value, ast.Tuple | ast.List)
