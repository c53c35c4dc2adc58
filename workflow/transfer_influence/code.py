"""The code behind a result: a digest that changes when what is computed may change."""

import ast
import functools
import hashlib
from pathlib import Path

PACKAGE = Path(__file__).parent
# Modules that decide what is said, how a job runs and how files are written, and no number.
SILENT = [
    PACKAGE / f"{name}.py"
    for name in (
        *("claims", "code", "errors", "files", "job", "locks", "progress", "provenance"),
        *("datasets/staging", "outcomes/partial", "training/watching"),
    )
]
EXPLANATIONS = ("description", "help")  # arguments that are read by people only
OF_KEYS = (*EXPLANATIONS, "examples")  # and of a key of the config


def code_digest(script: Path) -> str:
    """Digest the code that a script runs: itself and the modules of the package it imports.

    The digest is of the syntax tree without docstrings and descriptions, so neither these nor
    comments and layout count. It is passed to Snakemake as a parameter, which makes results stale
    when the code behind them changes, and only then. `SILENT` modules do not count.
    """
    modules = _imported_modules(script)
    trees = "\n".join(_tree(module) for module in sorted(modules))
    return hashlib.sha256(trees.encode()).hexdigest()[:16]


def _imported_modules(script: Path) -> set[Path]:
    found, waiting = {script}, [script]
    while waiting:
        for module in _imports(waiting.pop()):
            if module not in found and module not in SILENT:
                found.add(module)
                waiting.append(module)
    return found


@functools.cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def _imports(path: Path) -> tuple[Path, ...]:
    names = []
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(module for name in names if (module := _module_file(name)) is not None)


def _module_file(name: str) -> Path | None:
    package, *parts = name.split(".")
    if package != PACKAGE.name or not parts:
        return None
    path = PACKAGE.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def _tree(path: Path) -> str:
    tree = _parsed(path)  # and pruned below, of what holds no import
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
        if isinstance(node, ast.Call):
            key = isinstance(node.func, ast.Name) and node.func.id == "Field"
            silent = OF_KEYS if key else EXPLANATIONS
            node.keywords = [word for word in node.keywords if word.arg not in silent]
    return f"{path.name}: {ast.dump(tree)}"
