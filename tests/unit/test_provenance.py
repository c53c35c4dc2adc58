import hashlib
import importlib.metadata
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tests.conftest import CHECKOUT

from transfer_influence import __version__, provenance
from transfer_influence.errors import UserError
from transfer_influence.outcomes.tables import write_table
from transfer_influence.outcomes.weights import digest_of
from transfer_influence.provenance import (
    ACCEPTED,
    KEY,
    Origin,
    agreed,
    differences,
    file_digest,
    find_provenance,
    fingerprint,
    identity,
    read_provenance,
    same_code,
    sign_svg,
    with_companions,
)

SVG = "<svg>\n<text>a --> b</text>\n</svg>\n"


def table(path: Path, values: list[int], seconds: float = 1.0, **made: Any) -> Path:
    """Write a small result that took some time."""
    write_table(pa.table({"model": values}), path, json.dumps({"seconds": seconds, **made}))
    return path


def test_an_origin_is_digested_whole():
    origin = Origin({"seed": 1, "rate": 0.5}, {"data": "a", "ranking": "b"}, "code")
    assert (
        origin.digest
        == Origin(dict(reversed(origin.settings.items())), origin.inputs, "code").digest
    )
    for other in (
        Origin({"seed": 2, "rate": 0.5}, origin.inputs, "code"),
        Origin({"seed": 0.5, "rate": 1}, origin.inputs, "code"),
        Origin(origin.settings, {"data": "b", "ranking": "a"}, "code"),
        Origin(origin.settings, origin.inputs, "cod"),
    ):
        assert origin.digest != other.digest


def test_a_file_digest_is_of_the_bytes(tmp_path):
    (tmp_path / "one").write_bytes(b"same")
    (tmp_path / "two").write_bytes(b"same")
    assert file_digest(tmp_path / "one") == file_digest(tmp_path / "two")
    assert file_digest(tmp_path / "one") == hashlib.sha256(b"same").hexdigest()[:16]
    (tmp_path / "two").write_bytes(b"sama")
    assert file_digest(tmp_path / "one") != file_digest(tmp_path / "two")


def test_provenance_says_where_a_result_came_from():
    found = json.loads(
        Origin({"seed": 3}, {"data": "abc"}, "0123").provenance("NVIDIA H100", 1.23456)
    )
    assert found["settings"] == {"seed": 3}
    assert found["inputs"] == {"data": "abc"}
    assert (found["code"], found["device"], found["seconds"]) == ("0123", "NVIDIA H100", 1.235)
    assert found["version"] == __version__
    assert found["libraries"]["torch"] == importlib.metadata.version("torch")
    head = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found["commit"] == (head.stdout.strip() if head.returncode == 0 else None)


def test_provenance_without_time_has_none():
    found = json.loads(Origin({}, {}, "").provenance())
    assert (found["device"], found["seconds"]) == ("cpu", None)


# What results carry


def test_equal_rows_have_an_equal_identity_whatever_made_them(tmp_path):
    one = table(tmp_path / "one.parquet", [1, 2])
    two = table(tmp_path / "two.parquet", [1, 2], seconds=2.0, code="other")
    other = table(tmp_path / "other.parquet", [2, 1])
    assert one.read_bytes() != two.read_bytes()
    assert identity(one) == identity(two) != identity(other)
    assert identity(one) == read_provenance(one)["digest"]


def test_rows_in_other_chunks_have_an_equal_identity(tmp_path):
    whole = pa.table({"model": [1, 2, 3], "margin": np.arange(3.0)})
    cut = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    write_table(whole, tmp_path / "whole.parquet", "{}")
    write_table(cut, tmp_path / "cut.parquet", "{}")
    assert identity(tmp_path / "whole.parquet") == identity(tmp_path / "cut.parquet")


def test_weights_carry_their_provenance_in_their_header(tmp_path):
    path = tmp_path / "shard.safetensors"
    save_file({"0/w": torch.ones(3)}, path, {KEY: json.dumps({"code": "a", "digest": "d"})})
    assert find_provenance(path) == {"code": "a", "digest": "d"}
    assert identity(path) == "d"
    save_file({"0/w": torch.ones(3)}, path)
    assert find_provenance(path) is None


def test_the_digest_of_weights_is_of_names_types_shapes_and_values():
    weights = {"a": torch.arange(4.0), "steps": torch.tensor(3)}
    assert digest_of(weights) == digest_of(dict(weights))
    for other in (
        {"b": weights["a"], "steps": weights["steps"]},
        {**weights, "a": weights["a"].reshape(2, 2)},
        {**weights, "a": weights["a"] + 1},
        {**weights, "steps": torch.tensor(3, dtype=torch.int32)},
    ):
        assert digest_of(other) != digest_of(weights)


@pytest.mark.parametrize("length", [0, 100_000])
def test_a_figure_carries_its_provenance_at_its_end(tmp_path, length):
    path = tmp_path / "figure.svg"
    path.write_text(SVG)
    made = {"settings": {"title": "a --> b" + "x" * length}, "inputs": {}}
    sign_svg(path, json.dumps(made))
    told = find_provenance(path)
    assert told is not None
    assert told.pop("digest") == hashlib.sha256(SVG.encode()).hexdigest()[:16]
    assert told == made
    # Still well-formed XML, whatever the title.
    assert subprocess.run(["python3", "-c", XML, str(path)], check=False).returncode == 0


XML = "import sys, xml.etree.ElementTree as tree; tree.parse(sys.argv[1])"


def test_a_damaged_result_says_nothing(tmp_path):
    path = table(tmp_path / "t.parquet", [1])
    path.write_bytes(path.read_bytes()[:-20])
    assert find_provenance(path) is None
    with pytest.raises(UserError, match=r"t.parquet: carries no provenance, so it is damaged"):
        read_provenance(path)
    (tmp_path / "w.safetensors").write_bytes(b"short")
    assert find_provenance(tmp_path / "w.safetensors") is None
    with pytest.raises(UserError, match=r"gone.parquet: no such file; run the job"):
        read_provenance(tmp_path / "gone.parquet")


def test_a_file_of_ones_own_is_known_by_its_bytes(tmp_path):
    (tmp_path / "list.txt").write_text("1\n")
    assert identity(tmp_path / "list.txt") == file_digest(tmp_path / "list.txt")
    with pytest.raises(UserError, match=r"gone.txt: no such file; run the job"):
        identity(tmp_path / "gone.txt")


def test_the_files_of_a_data_set_are_known_by_its_sidecar(planted):
    whole = identity(planted / "dataset.json")
    assert identity(planted / "train.beton") == whole
    assert identity(planted / "test.labels.npy") == whole
    told = read_provenance(planted / "dataset.json")
    assert set(told["companions"]) >= {"train.beton", "test.labels.npy", "test.examples.parquet"}
    assert told["settings"]["originals"] == "as converted"


def test_companions_are_known_by_their_content(tmp_path):
    rows = table(tmp_path / "t.parquet", [1])
    (tmp_path / "t.csv").write_text("model\n1\n")
    (tmp_path / "train.beton").write_bytes(b"12345")
    told = json.loads(
        with_companions("{}", {path.name: path for path in sorted(tmp_path.iterdir())})
    )
    assert told["companions"] == {
        "t.csv": file_digest(tmp_path / "t.csv"),
        "t.parquet": identity(rows),
        "train.beton": file_digest(tmp_path / "train.beton"),
    }
    assert fingerprint(rows) == identity(rows)


def test_large_companions_are_known_by_a_sample_of_their_content(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "READ_WHOLE", 100)
    monkeypatch.setattr(provenance, "BLOCKS", 5)
    monkeypatch.setattr(provenance, "BLOCK", 10)
    images, rows = tmp_path / "train.beton", table(tmp_path / "t.parquet", [1])
    images.write_bytes(bytes(200))
    known = {fingerprint(images)}
    for place in (0, 199, 100):  # at both ends and in the middle there are blocks
        images.write_bytes(bytes(place) + b"x" + bytes(199 - place))
        known.add(fingerprint(images))
    images.write_bytes(bytes(201))
    known.add(fingerprint(images))
    assert len(known) == 5
    assert rows.stat().st_size > 100
    assert fingerprint(rows) == identity(rows)


# What must agree


def test_models_that_were_made_alike_agree():
    source = {"source": {"recipe": {"epochs": 4}}, "code": {"train_sources": "a"}}
    targets = {"targets": {"pets.v1": {"fixed": {"recipe": {"epochs": 9}}}}}
    assert agreed([("a", source), ("b", {}), ("c", source | targets)]) == source | targets


def test_models_that_were_not_made_alike_are_refused_with_both_files_and_the_setting(tmp_path):
    first = table(tmp_path / "a.parquet", [1], models={"source": {"recipe": {"epochs": 4}}})
    second = table(tmp_path / "b.parquet", [1], models={"source": {"recipe": {"epochs": 5}}})
    with pytest.raises(UserError) as caught:
        Origin.of({}, {"transfers": [first, second]}, "")
    assert str(caught.value) == (
        f"{first} and {second} do not belong together: source.recipe.epochs is 4 in the first and "
        f"5 in the second; run the workflow again, or delete the one that is out of date."
    )


def test_a_job_is_refused_inputs_that_its_own_models_do_not_agree_with(tmp_path):
    ranking = table(tmp_path / "r.parquet", [1], models={"source": {"recipe": {"epochs": 4}}})
    work = Origin({}, {}, "", {"source": {"recipe": {"epochs": 5}}})
    with pytest.raises(UserError, match=r"r.parquet and what is to be made do not belong together"):
        Origin.of({}, {"ranking": ranking}, "", work)


def test_the_origin_of_a_result_names_its_inputs_and_takes_over_what_is_behind_them(tmp_path):
    models = {"source": {"seed": 3}}
    one, two = (table(tmp_path / f"{i}.parquet", [i], models=models) for i in range(2))
    origin = Origin.of({"a": 1}, {"first": one, "all": [one, two]}, "c")
    assert origin.inputs == {"first": identity(one), "all": [identity(one), identity(two)]}
    assert origin.models == models


def test_the_work_behind_a_result_decides_its_digest(tmp_path):
    rankings = [table(tmp_path / f"{i}.parquet", [i]) for i in range(2)]
    work = Origin({}, {"mask": "m"}, "c")
    one, two = (Origin.of({}, {"ranking": path}, "c", work) for path in rankings)
    assert one.inputs != two.inputs
    assert one.digest == two.digest == work.digest


def test_code_that_a_person_vouched_for_counts_as_the_same(tmp_path, monkeypatch):
    assert not same_code("old", "new")
    accepted = tmp_path / "accepted_code.json"
    accepted.write_text(json.dumps({"old": "new"}))
    monkeypatch.setenv(ACCEPTED, str(accepted))
    assert same_code("old", "new")
    assert not same_code("old", "other")
    models = [("a", {"code": {"transfer": "old"}}), ("b", {"code": {"transfer": "new"}})]
    assert agreed(models)["code"]["transfer"] == "old"


def test_differences_are_told_one_by_one():
    before = {"recipe": {"epochs": 4, "mixup": 0.1}, "seed": 0, "modes": ["a"]}
    now = {"recipe": {"epochs": 5, "flip": True}, "seed": 0, "modes": ["a", "b"]}
    assert list(differences(before, now)) == [
        "made with recipe.epochs 4; the study says 5",
        "made with recipe.flip not given; the study says true",
        "made with recipe.mixup 0.1; the study says not given",
        'made with modes ["a"]; the study says ["a", "b"]',
    ]
    assert not list(differences(before, dict(before)))
