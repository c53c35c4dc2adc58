"""What people and editors read about the config says what the settings say."""

import json
from pathlib import Path
from typing import Annotated

import jsonschema
import pytest
import yaml
from pydantic import Field, TypeAdapter
from snakemake.utils import update_config

from transfer_influence.config.dataset import DatasetFile
from transfer_influence.config.reference import DOCUMENTED, key_table, readme, schemas
from transfer_influence.config.settings import Settings
from transfer_influence.config.study import Study

CONFIG = Path(__file__).parents[2] / "config"


def subclasses(cls: type) -> set[type]:
    return {sub for child in cls.__subclasses__() for sub in {child, *subclasses(child)}}


@pytest.mark.parametrize("path", sorted(schemas()), ids=lambda path: path.name)
def test_schema_is_in_step(path):
    assert path.read_text() == schemas()[path], "run `make format`"


def test_tables_of_keys_are_in_step():
    path, text = readme()
    assert path.read_text() == text, "run `make format`"


def test_every_setting_of_a_user_has_its_table():
    import transfer_influence.config.dataset
    import transfer_influence.config.study  # noqa: F401

    of_users = {
        cls
        for cls in subclasses(Settings)
        if cls.__module__.rsplit(".", 1)[-1] in ("study", "recipe", "dataset", "storage")
    }
    assert of_users == set(DOCUMENTED)


def table_rows(model: type[Settings]) -> dict[str, list[str]]:
    """Return the cells of each key's row, by key."""
    rows = [line[2:-2].split(" | ") for line in key_table(model).splitlines()[2:]]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


@pytest.mark.parametrize("model", DOCUMENTED, ids=lambda model: model.__name__)
def test_every_key_has_a_row_with_value_default_example_and_meaning(model):
    rows = table_rows(model)
    assert rows.keys() == set(model.model_fields) - set(model.__bases__[0].model_fields)
    assert [key for key, cells in rows.items() if len(cells) != 4 or not all(cells)] == []


@pytest.mark.parametrize("model", DOCUMENTED, ids=lambda model: model.__name__)
def test_every_example_is_valid_and_can_be_pasted(model):
    for key, (_, _, example, _) in table_rows(model).items():
        field = model.model_fields[key]
        (value,) = yaml.safe_load(f"{{{example.strip('`')}}}".replace(r"\|", "|")).values()
        TypeAdapter(Annotated[field.annotation, field]).validate_python(value)


@pytest.mark.parametrize("silenced", ["description", "examples"])
def test_a_key_that_says_too_little_is_noticed(silenced):
    says = {"description": "Metres.", "examples": [3], silenced: None}

    class Silent(Settings):
        depth: int = Field(1, **says)

    assert not all(table_rows(Silent)["depth"])


STUDIES = ("demo", "paper", "paper-examples", "paper-fast")


@pytest.mark.parametrize(
    ("paths", "model"),
    [
        *(
            ([CONFIG / f"{name}.yaml"], Study)
            for name in (
                "demo",
                "paper",
                "paper-exact",
                "paper-examples",
                "paper-fast",
            )
        ),
        ([CONFIG / "paper.yaml", CONFIG / "paper-more-targets.yaml"], Study),
        *(([path], DatasetFile) for path in sorted((CONFIG / "datasets").glob("*.yaml"))),
    ],
    ids=lambda value: value[-1].name if isinstance(value, list) else "",
)
def test_files_that_come_along_fit_the_schemas(paths, model):
    values = {}
    for path in paths:  # put together as Snakemake does
        update_config(values, yaml.safe_load(path.read_text()))
    schema = "study.schema.json" if model is Study else "dataset.schema.json"
    jsonschema.validate(values, json.loads((CONFIG / schema).read_text()))
    model.model_validate(values)
