"""Weights of existing models are read, renamed, and refused where they do not fit."""

import pickle

import pytest
import torch
from safetensors.torch import save_file

from transfer_influence.config.recipe import Architecture
from transfer_influence.errors import UserError
from transfer_influence.models.building import build_model
from transfer_influence.models.checkpoints import load_checkpoint, read_checkpoint

SMALL = Architecture(width=4)
CLASSES = 5


@pytest.fixture
def state():
    return build_model(SMALL, CLASSES, seed=3).state_dict()


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_a_state_dict_is_read_as_it_is(state, tmp_path):
    torch.save(state, tmp_path / "0.pt")
    assert equal(read_checkpoint(tmp_path / "0.pt", None, {}), state)
    save_file(state, tmp_path / "0.safetensors")
    assert equal(read_checkpoint(tmp_path / "0.safetensors", None, {}), state)


def test_a_state_dict_is_found_in_a_training_checkpoint_and_renamed(state, tmp_path):
    wrapped = {f"module.net.{name}": value for name, value in state.items()}
    torch.save({"epoch": 4, "model": wrapped}, tmp_path / "0.pt")
    found = read_checkpoint(tmp_path / "0.pt", "model", {"module.net.": "", "module.": "x"})
    assert equal(found, state)


def test_parameters_may_be_left_out(state, tmp_path):
    surplus = {"normalizer.mean": torch.zeros(3), **state}
    torch.save(surplus, tmp_path / "0.pt")
    assert equal(read_checkpoint(tmp_path / "0.pt", None, {"normalizer.": None}), state)
    with pytest.raises(UserError, match=r"0.pt: holds 'normalizer.mean', .* by `null` in"):
        load_checkpoint(build_model(SMALL, CLASSES, seed=0), surplus, tmp_path / "0.pt")


def test_two_parameters_of_one_name_are_refused(state, tmp_path):
    torch.save(
        {**{f"ema.{name}": value for name, value in state.items()}, **state}, tmp_path / "0.pt"
    )
    with pytest.raises(UserError, match=r"0.pt: source.key_map gives two parameters, .*'stem.0.we"):
        read_checkpoint(tmp_path / "0.pt", None, {"ema.": ""})
    assert equal(read_checkpoint(tmp_path / "0.pt", None, {"ema.": None}), state)


def test_a_loaded_model_computes_what_its_checkpoint_computed(state, tmp_path):
    torch.save(state, tmp_path / "0.pt")
    model = build_model(SMALL, CLASSES, seed=0)
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = build_model(SMALL, CLASSES, seed=3).eval()(images)
    assert not torch.equal(model.eval()(images), wanted)
    load_checkpoint(model, read_checkpoint(tmp_path / "0.pt", None, {}), tmp_path / "0.pt")
    assert torch.equal(model.eval()(images), wanted)


class Spy:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "state_key", "sentence"),
    [
        ({"epoch": 4, "model": {}}, "net", "0.pt: has no entry 'net'; it holds epoch, model; set"),
        (
            {"epoch": 4, "model": {}},
            None,
            "0.pt: not a state dict by itself; it holds epoch, model",
        ),
        ({"model": {}}, "model", "0.pt: not a state dict by itself; it holds nothing"),
        ([1, 2], None, r"0.pt: not a state dict by itself; it holds a list; save"),
        (Spy(), None, "0.pt: holds more than tensors and plain data, or is damaged"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(content, state_key, sentence, tmp_path, capsys):
    torch.save(content, tmp_path / "0.pt")
    with pytest.raises(UserError, match=sentence):
        read_checkpoint(tmp_path / "0.pt", state_key, {})
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["0.pt", "0.safetensors"])
def test_a_missing_or_damaged_file_is_named(name, state, tmp_path):
    path = tmp_path / name
    with pytest.raises(UserError, match=f"{name}: no such checkpoint; correct"):
        read_checkpoint(path, None, {})
    for content in (b"", b"abc", pickle.dumps([1])):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: (not readable as a checkpoint|holds more)"):
            read_checkpoint(path, None, {})
    torch.save(state, tmp_path / "whole.pt")
    path.write_bytes((tmp_path / "whole.pt").read_bytes()[:2000])
    with pytest.raises(UserError, match=f"{name}: not readable as a checkpoint"):
        read_checkpoint(path, None, {})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda state: {f"module.{name}": value for name, value in state.items()},
            r"0.pt: has no 'stem.0.weight' but 'module.stem.0.weight', .*source.key_map",
        ),
        (
            lambda state: {**state, "stem.0.weight": torch.zeros(8, 3, 3, 3)},
            r"0.pt: 'stem.0.weight' has shape \(8, 3, 3, 3\) where the network has \(4, 3, 3, 3\)",
        ),
        (
            lambda state: build_model(SMALL, 7, seed=0).state_dict(),
            r"its head '.*weight' has shape \(7, \d+\), but the source data set has 5 classes",
        ),
        (
            lambda state: {**state, "extra": torch.zeros(1)},
            "0.pt: holds 'extra', which the network does not have",
        ),
    ],
    ids=["names", "shape", "head", "surplus"],
)
def test_weights_that_do_not_fit_are_refused(change, sentence, state, tmp_path):
    model = build_model(SMALL, CLASSES, seed=0)
    with pytest.raises(UserError, match=sentence):
        load_checkpoint(model, change(state), tmp_path / "0.pt")
    assert equal(model.state_dict(), build_model(SMALL, CLASSES, seed=0).state_dict())
