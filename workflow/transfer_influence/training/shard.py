"""How the models of a shard are trained one after the other, and what becomes of one that fails."""

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from transfer_influence.config.recipe import Recipe
from transfer_influence.config.study import FailedModels
from transfer_influence.outcomes.evaluation import Evaluation
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.training.trainer import NotFiniteError

log = logging.getLogger(__name__)

# What a model leaves: its row, and its weights where these are kept.
Left = tuple[pa.Table, dict[str, torch.Tensor] | None]


def train_each(
    shard: PartialShard,
    failed: dict[int, pa.Table],
    train: Callable[[int], Left],
    failed_models: FailedModels,
    attempts: int = 2,
) -> None:
    """Train the models of a shard that nobody has finished, and keep what each leaves.

    Args:
        shard: which keeps it.
        failed: for each model, the row that it leaves if it cannot be trained.
        train: from the number of a model to what it leaves.
        failed_models: whether to stop at such a model or to go on without it.
        attempts: how often a model is trained whose loss is not finite, with the same seeds.

    Raises:
        NotFiniteError: all attempts failed and `failed_models` says to stop.
    """
    for number in shard.unfinished(list(failed)):
        reason = shard.failure(number)
        for left in reversed(range(attempts if reason is None else 0)):
            try:
                shard.save(number, *train(number))
                break
            except NotFiniteError as failure:
                if left:
                    log.warning("%s Once more, with the same seeds.", failure)
                else:
                    reason = str(failure)
                    shard.save_failure(number, reason)
        if reason is None:
            continue
        if failed_models == "stop":
            raise NotFiniteError(
                f"{reason} To go on without such models, set failed_models: exclude."
            )
        log.error("%s The study goes on without it.", reason)
        shard.save(number, failed[number])


def check_loss(
    evaluation: Evaluation, name: str, seeds: TrainingSeeds | None, recipe: Recipe
) -> None:
    """Refuse a model that only the last step of its training has spoilt.

    Raises:
        NotFiniteError: its loss on the test images is not finite.
    """
    if np.isfinite(evaluation.loss):
        return
    whose = f"{name} (seeds {seeds})" if seeds else name
    remedy = (
        f"lower the recipe's learning_rate ({recipe.learning_rate})"
        if seeds
        else "replace its checkpoint"
    )
    raise NotFiniteError(f"{whose}: the loss on the test images is {evaluation.loss}; {remedy}.")
