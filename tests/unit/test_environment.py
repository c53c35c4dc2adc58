"""The lists of packages in envs/ say the same thing."""

import re
from pathlib import Path

import pytest
import yaml

ENVS = Path(__file__).parents[2] / "envs"
PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(\[[a-z,]+\])?==(?P<version>[0-9][A-Za-z0-9.]*)")


def pins(requirements: list[str]) -> dict[str, str]:
    """Versions by normalised package name; every entry must be pinned, and none named twice."""
    found: dict[str, str] = {}
    for requirement in requirements:
        match = PIN.fullmatch(requirement)
        assert match, f"not of the form name==version: {requirement!r}"
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        assert name not in found, f"named twice: {name}"
        found[name] = match["version"]
    return found


def read(name: str) -> dict[str, str]:
    lines = (ENVS / name).read_text(encoding="utf-8").splitlines()
    return pins([line for line in lines if line.strip() and not line.startswith("#")])


def test_conda_repeats_the_requirements():
    environment = yaml.safe_load((ENVS / "environment.yaml").read_text(encoding="utf-8"))
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert pins(pip) == read("requirements.txt")


@pytest.mark.parametrize("kind", ["requirements", "development"])
def test_lock_holds_what_is_asked_for(kind):
    locked = read("requirements.lock") | read(f"{kind}.lock")
    asked = read(f"{kind}.txt")
    assert {name: locked.get(name) for name in asked} == asked


def test_locks_do_not_overlap():
    assert not read("requirements.lock").keys() & read("development.lock").keys()


@pytest.mark.parametrize("name", ["requirements.lock", "development.lock"])
def test_lock_serves_machines_without_a_gpu(name):
    cuda = [package for package in read(name) if package.startswith(("nvidia", "cuda", "triton"))]
    assert not cuda
