"""The base of all settings, and the sentences users read when one is wrong."""

import difflib
import json
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from transfer_influence.errors import UserError


class _Yaml(yaml.SafeLoader):
    """A loader that refuses a key that stands twice; the last one would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"{key.value!r} stands twice"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node


class Settings(BaseModel):
    """Immutable settings that refuse unknown keys and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=BaseModel)


def check(model: type[Model], values: Any, origin: str) -> Model:
    """Build settings from plain values.

    Raises:
        UserError: one sentence naming `origin`, the key, the value and the remedy.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(model, error, values, origin)) from None


def parse(model: type[Model], text: str) -> Model:
    """Build settings from the JSON that a rule hands to a script.

    Raises:
        UserError: one sentence, as `check`.
    """
    try:
        return check(model, json.loads(text), "--settings")
    except json.JSONDecodeError as error:
        raise UserError(f"--settings: not valid JSON ({error}); correct it.") from None


def read_yaml(path: Path) -> Any:
    """Read a YAML file into plain values.

    Raises:
        UserError: the file is missing, is not YAML, or gives a key twice.
    """
    try:
        return yaml.load(path.read_text(), Loader=_Yaml)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not valid YAML ({reason}); mend the syntax there.") from None


def updated(values: Any, new: Any) -> Any:
    """Return plain values with new ones in their place, as Snakemake puts config files together."""
    if not (isinstance(values, dict) and isinstance(new, dict)):
        return new
    return values | {key: updated(values.get(key), value) for key, value in new.items()}


def _sentence(model: type[BaseModel], error: ValidationError, values: Any, origin: str) -> str:
    problems = error.errors()
    first = problems[0]
    location = first["loc"]
    if first["type"].startswith("union_tag"):
        location = (*location, "kind")
    key = _key(location, values, first["type"] in ("missing", "union_tag_not_found"))
    if first["type"] == "extra_forbidden":
        told = f"{key}: unknown key{_nearest(model, first['loc'])}; correct or remove it"
    elif first["type"] in ("missing", "union_tag_not_found"):
        told = f"{key}: this key is missing; add it"
    elif first["type"] == "union_tag_invalid":
        known = first["ctx"]["expected_tags"]
        told = f"{key}: {first['ctx']['tag']!r} is not valid: choose one of {known}"
    elif first["type"] == "value_error":
        told = str(first["msg"]).removeprefix("Value error, ")
        told = f"{key}: {told}" if location else told
    else:
        told = f"{key}: {first['input']!r} is not valid: {first['msg'].lower()}; correct it"
    more = f" ({len(problems) - 1} more like this)" if len(problems) > 1 else ""
    return f"{origin}: {told}{more}."


def _key(location: tuple[int | str, ...], values: Any, missing: bool) -> str:
    """Name a key as the file has it, without the kinds of unions, which pydantic puts in."""
    parts = []
    for part in location:
        if isinstance(values, list) or (isinstance(values, dict) and part in values):
            values = values[part]  # type: ignore[index]
            parts.append(part)
    if missing:
        parts.append(location[-1])
    return ".".join(str(part) for part in parts) or "the whole file"


def _nearest(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """Suggest the known key, at the same place, that looks most like the unknown one."""
    models = _models_in(model)
    for part in location[:-1]:
        fields = [one.model_fields[str(part)] for one in models if str(part) in one.model_fields]
        # Anything that is no field is the kind of a union, or an index or a name: same place.
        of_kind = [
            one
            for one in models
            if "kind" in one.model_fields and part in get_args(one.model_fields["kind"].annotation)
        ]
        found = [inner for field in fields for inner in _models_in(field.annotation)]
        models = found or of_kind or models
    known = {name for one in models for name in one.model_fields}
    match = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return _models_in(annotation.model_fields["root"].annotation)
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]
