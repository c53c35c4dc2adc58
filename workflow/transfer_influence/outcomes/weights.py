"""The weights of a shard of source models, in one file."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes.partial import PartialShard


def write_weights(models: list[int], shard: PartialShard, weights: Path) -> None:
    """Write the weights of all models of a shard; a failed model has none."""
    with atomic(weights) as temporary:
        save_file(
            {
                f"{number}/{key}": value
                for number in models
                for key, value in shard.weights(number).items()
            },
            temporary,
        )


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
