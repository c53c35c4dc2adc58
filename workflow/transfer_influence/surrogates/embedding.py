"""What models trained on all source classes make of images: computed once, for all surrogates."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from transfer_influence.config.stages import EmbeddingStage
from transfer_influence.errors import UserError
from transfer_influence.job import JobOptions
from transfer_influence.models.building import build_model, head_name, place
from transfer_influence.outcomes.rows import failed_models
from transfer_influence.outcomes.weights import read_weights
from transfer_influence.seeds import Stage, stream
from transfer_influence.surrogates.gradients import gradients_of_margins, project
from transfer_influence.training.heads import solve_head
from transfer_influence.training.trainer import Trainer, open_trainer

PENALTY = 0.01  # of the head that target images have gradients through
MOST_BYTES = {"cpu": 2**29, "cuda": 2**33}  # of the gradients of a batch


def one_trainer(
    data: Path, stage: EmbeddingStage, options: JobOptions
) -> contextlib.AbstractContextManager[Trainer]:
    """Open a trainer on one device, of a job that has nothing to share with others."""
    alone = replace(options, processes=1, gpus=min(1, options.gpus))
    return open_trainer(data, stage.recipe, alone)


def embed(
    trainer: Trainer,
    stage: EmbeddingStage,
    weights: Sequence[Path],
    sources: Sequence[Path],
    classes: int,
    transferred: bool,
) -> dict[str, torch.Tensor]:
    """Look at all training images of a data set, in their test view, with each full model.

    Args:
        trainer: of the data set.
        stage: which models, and how they look.
        weights: safetensors files of full models, at least as many as `stage.checkpoints`.
        sources: their tables, in the same order.
        classes: how many classes the source has.
        transferred: whether the images are a target's, whose labels are not the model's.

    Returns:
        By name, with the number of the model in front, as `0/features`: `features`, float32 (n, d);
        of a target, `logits`, float32 (n, classes); and where gradients are wanted, `gradients`,
        float32 (n, k), see `trak`.

    Raises:
        UserError: all models failed; or see `read_weights`.
    """
    found: dict[str, torch.Tensor] = {}
    for number, file in chosen_models(weights, sources, stage.checkpoints):
        model = build_model(stage.architecture, classes, seed=0)
        model.load_state_dict(read_weights(file, number))
        model = place(model, trainer.device).eval()
        told = look(trainer, model)
        if stage.projection is not None:
            if transferred:
                labels = torch.from_numpy(trainer.train_loader.labels)
                head = fitted_head(told["features"], labels).to(trainer.device)
                model.set_submodule(head_name(model), head)
            drawn = stream(stage.seed, Stage.INFLUENCE, number, "projection")
            told["gradients"] = projected(trainer, model, stage.projection, drawn)
        if not transferred:
            del told["logits"]  # as large as the features, and of no use
        found |= {f"{number}/{name}": values.contiguous() for name, values in told.items()}
    return found


def chosen_models(
    weights: Sequence[Path], sources: Sequence[Path], wanted: int
) -> list[tuple[int, Path]]:
    """Return the first full models that did not fail, up to so many, each with its file.

    Raises:
        UserError: all of them failed.
    """
    models = [
        (number, file)
        for file, table in zip(weights, sources, strict=True)
        for number, failed in failed_models(table).items()
        if not failed
    ]
    if not models:
        raise UserError(f"{sources[0]}: all models on all classes failed; change the recipe.")
    return models[:wanted]


def look(trainer: Trainer, model: nn.Module) -> dict[str, torch.Tensor]:
    """Return `features`, float32 (n, d), and `logits`, float32 (n, classes), of all images."""
    frozen = trainer.frozen(model)
    seen = (frozen.seen(images) for images, _ in batches(trainer, trainer.evaluation_batch_size))
    parts = [[values.float().cpu() for values in both] for both in seen]
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"features": features, "logits": logits}


def batches(trainer: Trainer, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield all training images in their test view, and their labels."""
    loader = trainer.train_loader
    examples, resolution = np.arange(len(loader.labels)), trainer.recipe.evaluation_resolution
    yield from loader.batches(examples, size, None, resolution)


def fitted_head(features: torch.Tensor, labels: torch.Tensor) -> nn.Linear:
    """Return a head that tells the classes of a target, by logistic regression."""
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    solve_head(head, features, labels, nn.CrossEntropyLoss(), [PENALTY])
    return head


def projected(
    trainer: Trainer, model: nn.Module, dimensions: int, drawn: np.random.SeedSequence
) -> torch.Tensor:
    """Return the projected gradients of all images by all parameters but the head's.

    A target's head is another one than the source's, so gradients by heads do not compare.
    """
    seed = int(drawn.generate_state(1, np.uint64)[0] >> np.uint64(1))
    network = nn.Sequential(trainer.normalize, model)
    head = f"1.{head_name(model)}."
    trained = [name for name, _ in network.named_parameters() if not name.startswith(head)]
    parameters = sum(network.get_parameter(name).numel() for name in trained)
    fitting = max(1, MOST_BYTES[trainer.device.type] // (4 * parameters))
    size = min(trainer.evaluation_batch_size, fitting)
    return torch.cat(
        [
            project(gradients_of_margins(network, trained, *batch), dimensions, seed).cpu()
            for batch in batches(trainer, size)
        ]
    )
