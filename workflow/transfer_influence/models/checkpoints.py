"""Source models that exist already, as files of weights. Nothing is unpickled."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from transfer_influence.errors import UserError
from transfer_influence.models.building import head_name
from transfer_influence.provenance import file_digest


def read_checkpoint(
    path: Path, state_key: str | None, key_map: dict[str, str | None]
) -> dict[str, torch.Tensor]:
    """Read the state dict of one model.

    Args:
        path: written by `torch.save`, or `.safetensors`.
        state_key: entry of the file that holds the state dict; None if the file is one.
        key_map: beginnings of names and what to put in their place, None to leave such a
            parameter out; the first that fits counts.

    Raises:
        UserError: the file is missing, unreadable, holds more than plain data, or no state dict; or
            two of its names become one.
    """
    content = _read(path)
    if state_key is not None:
        if not isinstance(content, dict) or state_key not in content:
            raise UserError(f"{path}: has no entry {state_key!r}; {_entries(content)}")
        content = content[state_key]
    tensors = isinstance(content, dict) and all(
        isinstance(value, torch.Tensor) for value in content.values()
    )
    if not tensors or not content:
        raise UserError(f"{path}: not a state dict by itself; {_entries(content)}")
    state: dict[str, torch.Tensor] = {}
    for name, value in content.items():
        renamed = _renamed(name, key_map)
        if renamed is None:
            continue
        if renamed in state:
            raise UserError(
                f"{path}: source.key_map gives two parameters, one of them {name!r}, the name "
                f"{renamed!r}; leave one out by `null`."
            )
        state[renamed] = value
    return state


def load_checkpoint(model: nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into a model of its architecture.

    Raises:
        UserError: they do not fit; the sentence names the first parameter that does not.
    """
    head = f"{head_name(model)}."
    expected = {name: value.shape for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            raise UserError(
                f"{path}: has no {name!r} but {_some(state, expected)}; correct "
                f"source.architecture, or say by source.key_map how its names begin."
            )
        if state[name].shape != shape:
            found, wanted = tuple(state[name].shape), tuple(shape)
            if name.startswith(head):
                raise UserError(
                    f"{path}: its head {name!r} has shape {found}, but the source data set has "
                    f"{model.get_parameter(head + 'weight').shape[0]} classes, which takes "
                    f"{wanted}; correct source.dataset or the checkpoints."
                )
            raise UserError(
                f"{path}: {name!r} has shape {found} where the network has {wanted}; correct "
                f"source.architecture."
            )
    surplus = next((name for name in state if name not in expected), None)
    if surplus is not None:
        raise UserError(
            f"{path}: holds {surplus!r}, which the network does not have; correct "
            f"source.architecture, or leave it out by `null` in source.key_map."
        )
    model.load_state_dict(state)


def digest_checkpoints(paths: list[Path]) -> str:
    """Digest the bytes of checkpoints.

    Raises:
        UserError: one of them is missing.
    """
    for path in paths:
        if not path.is_file():
            raise _missing(path)
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()[:16]


def _missing(path: Path) -> UserError:
    return UserError(f"{path}: no such checkpoint; correct source.checkpoints, or lower `models`.")


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise _missing(path) from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain data, or is damaged, so it is not opened; "
            f"save the model's state_dict() alone."
        ) from None
    except Exception as error:  # damaged bytes fail in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as a checkpoint ({reason}); replace it.") from None


def _entries(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds a {type(content).__name__}; save the model's state_dict()."
    names = ", ".join(map(str, list(content)[:6])) or "nothing"
    return f"it holds {names}; set source.state_key to the entry that is the state dict."


def _some(state: dict[str, torch.Tensor], expected: dict[str, torch.Size]) -> str:
    unknown = [name for name in state if name not in expected] or list(state)
    return ", ".join(map(repr, unknown[:3]))


def _renamed(name: str, key_map: dict[str, str | None]) -> str | None:
    for beginning, replacement in key_map.items():
        if name.startswith(beginning):
            return None if replacement is None else replacement + name.removeprefix(beginning)
    return name
