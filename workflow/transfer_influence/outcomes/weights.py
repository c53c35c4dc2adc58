"""The weights of a shard of source models, in one file; and files of tensors."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.provenance import KEY


def write_weights(models: list[int], shard: PartialShard, weights: Path, provenance: str) -> None:
    """Write the weights of all models of a shard; a failed model has none."""
    tensors = {
        f"{number}/{key}": value
        for number in models
        for key, value in shard.weights(number).items()
    }
    write_tensors(tensors, weights, provenance)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, provenance: str) -> None:
    """Write a safetensors file, atomically.

    The header holds the provenance and `digest`, of all names and values.
    """
    told = json.loads(provenance) | {"digest": digest_of(tensors)}
    with atomic(path) as temporary:
        save_file(tensors, temporary, {KEY: json.dumps(told)})


def digest_of(tensors: dict[str, torch.Tensor]) -> str:
    """Digest the names and values of tensors."""
    digest = hashlib.sha256()
    for name, values in tensors.items():
        digest.update(f"{name} {values.dtype} {list(values.shape)}".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_weights(path: Path, model: int) -> dict[str, torch.Tensor]:
    """Read the weights of one source model out of its shard.

    Raises:
        UserError: the file is missing or damaged, or does not hold the model.
    """
    prefix = f"{model}/"
    try:
        with safe_open(path, "pt") as shard:
            names = [name for name in shard.keys() if name.startswith(prefix)]  # noqa: SIM118
            weights = {name.removeprefix(prefix): shard.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable ({error}); train that shard again.") from None
    if not weights:
        raise UserError(f"{path}: holds no source model {model}; train that shard again.")
    return weights
