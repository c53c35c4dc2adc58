"""Keep what people and editors read about the config in step with the settings themselves.

``python -m transfer_influence.config.reference`` rewrites the JSON schemas in ``config/`` and the
tables of keys in ``config/README.md``; a test fails when they are out of step.
"""

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from transfer_influence.config import dataset, recipe, study

CONFIG = Path(__file__).parents[3] / "config"
MARK = "<!-- keys of {name}: written by `make format`, edit the settings instead -->"
END = "<!-- end of keys -->"
DOCUMENTED: list[type[BaseModel]] = [
    study.Study,
    study.Source,
    study.Subset,
    recipe.Architecture,
    recipe.Recipe,
    recipe.ResolutionRamp,
    recipe.CyclicSchedule,
    recipe.StepSchedule,
    recipe.MultiStepSchedule,
    recipe.Augmentation,
    study.Target,
    recipe.TargetRecipe,
    recipe.Head,
    study.TargetList,
    study.Influence,
    study.Counterfactuals,
    study.Surrogates,
    dataset.DatasetSettings,
    dataset.Split,
    dataset.Normalisation,
    dataset.Storage,
    dataset.FolderDataset,
    dataset.TorchvisionDataset,
    dataset.ArraysDataset,
    dataset.TableDataset,
    dataset.UnionDataset,
]


def schemas() -> dict[Path, str]:
    """Return the JSON schemas for editors, by the file they belong in."""
    models: dict[str, type[BaseModel]] = {
        "study.schema.json": study.Study,
        "dataset.schema.json": dataset.DatasetFile,
    }
    return {
        CONFIG / name: json.dumps(model.model_json_schema(), indent=2) + "\n"
        for name, model in models.items()
    }


def readme() -> tuple[Path, str]:
    """Return `config/README.md` with its tables of keys as they should be."""
    path = CONFIG / "README.md"
    text = path.read_text()
    for model in DOCUMENTED:
        mark = MARK.format(name=model.__name__)
        before, rest = text.split(mark)
        text = before + mark + "\n" + key_table(model) + END + rest.split(END, 1)[1]
    return path, text


def key_table(model: type[BaseModel]) -> str:
    """Return a Markdown table of the keys that a model adds to its parent."""
    inherited = set().union(*(getattr(base, "model_fields", {}) for base in model.__bases__))
    lines = ["| key | value | default | example | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        if name in inherited:
            continue
        cells = (
            f"`{name}`",
            _value(field.annotation),
            _default(field),
            _example(name, field),
            field.description or "",
        )
        row = " | ".join(cell.replace("|", r"\|") for cell in cells)
        lines.append(f"| {row} |")
    return "\n".join(lines) + "\n"


def _example(name: str, field: FieldInfo) -> str:
    """Return the first example as a line of the file has it."""
    if not field.examples:
        return ""
    values = {name: field.examples[0]}
    line = yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000)
    return f"`{line.strip()[1:-1]}`"


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**needed**"
    if isinstance(field.default, BaseModel):
        changed = field.default.model_dump(exclude_defaults=True)
        return f"`{json.dumps(changed)}`" if changed else "see below"
    if isinstance(field.default, Path):
        return f"`{field.default}`"
    return "none" if field.default is None else f"`{json.dumps(field.default)}`"


def _value(annotation: Any) -> str:
    """Say in words what kind of value an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _value(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if origin is list:
        return f"list of {_value(get_args(annotation)[0])}"
    if origin is dict:
        return f"{_value(get_args(annotation)[1])} by name"
    if origin in (Union, types.UnionType):
        chosen = [part for part in get_args(annotation) if part is not type(None)]
        return " or ".join(dict.fromkeys(_value(part) for part in chosen))
    if issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
    return words[annotation]


def main() -> None:
    """Write the schemas and the tables of keys."""
    for path, text in [*schemas().items(), readme()]:
        path.write_text(text)


if __name__ == "__main__":
    main()
