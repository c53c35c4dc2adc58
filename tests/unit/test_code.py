import ast
import functools
import os
import shutil
import subprocess
import sys

import pytest
from tests.conftest import CHECKOUT

from transfer_influence.code import PACKAGE, code_digest

DIGEST = """
import sys
from pathlib import Path
from transfer_influence.code import code_digest
print(code_digest(Path(sys.argv[1])))
"""


class Copy:
    """A copy of the package and the scripts, to be edited."""

    def __init__(self, folder) -> None:
        self.scripts, self.package = folder / "scripts", folder / "workflow" / PACKAGE.name
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "scripts", self.scripts, ignore=ignore)
        shutil.copytree(PACKAGE, self.package, ignore=ignore)

    def edit(self, path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    def digest(self, script: str = "summarize.py") -> str:
        return subprocess.run(
            [sys.executable, "-c", DIGEST, str(self.scripts / script)],
            env={**os.environ, "PYTHONPATH": str(self.package.parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path)


def test_the_digest_does_not_depend_on_where_the_code_lies(copy):
    here = code_digest(CHECKOUT / "scripts" / "summarize.py")
    assert copy.digest() == here
    assert len(here) == 16


def test_comments_docstrings_and_layout_do_not_count(copy):
    before = copy.digest()
    module = copy.package / "outcomes" / "summary.py"
    copy.edit(module, '"""All shards of one (target, mode), checked and put together."""', "")
    copy.edit(module, '    """Refuse outcomes that are not finite', '    """Another docstring')
    copy.edit(module, "ROW_GROUP = 64\n", "\n\n\n# A comment.\nROW_GROUP  =  (64)\n")
    copy.edit(copy.scripts / "summarize.py", '"""Put the', '"""Another docstring. Put the')
    assert copy.digest() == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("outcomes/summary.py", "ROW_GROUP = 64", "ROW_GROUP = 65"),
        ("outcomes/tables.py", '"raw_margin",', '"margin",'),
        ("outcomes/summary.py", "if wrong:", "if not wrong:"),
    ],
    ids=["imported", "imported by an imported one", "an operator"],
)
def test_a_change_of_imported_code_counts(copy, module, old, new):
    before = copy.digest()
    copy.edit(copy.package / module, old, new)
    assert copy.digest() != before


def test_a_change_of_the_script_itself_counts(copy):
    before = copy.digest()
    copy.edit(copy.scripts / "summarize.py", "models=stage.models", "models=1")
    assert copy.digest() != before


def test_modules_that_a_script_does_not_import_do_not_count(copy):
    before, of_training = copy.digest(), copy.digest("train_sources.py")
    copy.edit(copy.package / "training" / "schedule.py", "* factors", "* factors * 2")
    copy.edit(copy.package / "counterfactual" / "removals.py", "units - LEAST_KEPT", "units - 3")
    assert copy.digest() == before
    assert copy.digest("train_sources.py") != of_training


def test_an_import_inside_a_function_counts(copy):
    copy.edit(
        copy.package / "outcomes" / "tables.py",
        "    with damage_named(path):\n        return pq.ParquetFile(path)\n",
        "    from transfer_influence.influence import ranking\n    return ranking\n",
    )
    before = copy.digest()
    copy.edit(copy.package / "influence" / "ranking.py", 'kind="stable"', 'kind="heapsort"')
    assert copy.digest() != before


def test_modules_that_decide_no_number_do_not_count(copy):
    before = copy.digest()
    copy.edit(copy.package / "progress.py", "mininterval=30", "mininterval=60")
    copy.edit(copy.package / "files.py", "hex[:8]", "hex[:9]")
    assert copy.digest() == before


def test_a_string_that_is_no_docstring_counts(copy):
    before = copy.digest()
    copy.edit(copy.package / "outcomes" / "tables.py", '"prediction"', '"guess"')
    assert copy.digest() != before


MODULES = sorted(PACKAGE.rglob("*.py")) + sorted((CHECKOUT / "scripts").glob("*.py"))


@functools.cache
def parsed(path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_import_is_one_that_the_digest_can_follow(path):
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            assert name not in ("__import__", "import_module")


@pytest.mark.parametrize(
    "room", sorted(PACKAGE.rglob("__init__.py")), ids=lambda path: path.parent.name
)
def test_rooms_have_no_code_of_their_own_which_the_digest_would_miss(room):
    code = [node for node in parsed(room).body if not isinstance(node, ast.Expr)]
    allowed = ["__version__"] if room.parent == PACKAGE else []
    assert [node.targets[0].id for node in code] == allowed
