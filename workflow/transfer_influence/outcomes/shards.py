"""Train or transfer the models of one shard, one after the other, and write what they leave."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import TransferStage
from transfer_influence.datasets.loaders import open_loader
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.models.building import (
    build_model,
    freeze_for,
    load_backbone,
    place,
)
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.tables import (
    PER_EXAMPLE,
    list_column,
    read_table,
    write_table,
)
from transfer_influence.progress import progress
from transfer_influence.provenance import Origin
from transfer_influence.seeds import TrainingSeeds
from transfer_influence.subsets import SourceModel, examples_of, pack
from transfer_influence.training.evaluation import Evaluation, evaluate
from transfer_influence.training.loop import Normalize, train

log = logging.getLogger(__name__)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU, computing in one thread.

    One thread, since sums in another order differ in their last bits: more cores run more jobs,
    and change no result.
    """
    torch.set_num_threads(1)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of a device, for provenance."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def train_sources(
    models: list[SourceModel],
    data: Path,
    architecture: Architecture,
    recipe: Recipe,
    weights: Path,
    table: Path,
    origin: Origin,
    workers: int,
) -> None:
    """Train source models; write their weights and a table with one row a model.

    Args:
        models: what to train, in this order.
        data: folder of the converted source data set.
        architecture: the network.
        recipe: how to train it.
        weights: safetensors file to write; keys are `{model}/{parameter}`.
        table: Parquet file to write.
        origin: of the result; models that an earlier, killed job of the same origin finished are
            not trained again.
        workers: threads that decode images.
    """
    started = time.monotonic()
    device = best_device()
    sidecar = read_sidecar(data / "dataset.json")
    train_loader = open_loader(data, "train", recipe, device, workers)
    test_loader = open_loader(data, "test", recipe, device, workers)
    normalize = Normalize(sidecar, device)
    partial = PartialShard(table, origin.digest)
    everything = np.arange(len(test_loader.labels))
    by_number = {source.model: source for source in models}
    for number in unfinished(list(by_number), partial):
        source, name = by_number[number], f"source model {number}"
        model = build_model(architecture, len(sidecar.classes), source.seeds.weights)
        model = place(model, device)
        kept = examples_of(source.mask, train_loader.labels)
        train(model, train_loader, kept, normalize, recipe, source.seeds, device, name)
        evaluation = evaluate(model, test_loader, everything, normalize, recipe, device)
        row = source_row(source, evaluation, examples_of(source.mask, test_loader.labels))
        log.info("%s: accuracy on its own classes %.4f", name, row["accuracy"][0].as_py())
        state = model.state_dict().items()
        partial.save(number, row, {key: value.cpu().contiguous() for key, value in state})
    with atomic(weights) as temporary:
        save_file(
            {
                f"{number}/{key}": value
                for number in by_number
                for key, value in partial.weights(number).items()
            },
            temporary,
        )
    seconds = time.monotonic() - started
    finish(list(by_number), partial, table, origin.provenance(device_name(device), seconds))


def transfer(
    weights: Path,
    sources: Path,
    stage: TransferStage,
    seeds: Callable[[int], TrainingSeeds],
    data: Path,
    table: Path,
    origin: Origin,
    workers: int,
) -> None:
    """Transfer every source model of a shard to one target; write one row a model.

    Args:
        weights: safetensors file of the source models.
        sources: table of the source models.
        stage: target, mode and recipe.
        seeds: from a model's number to its seeds.
        data: folder of the converted target data set.
        table: Parquet file to write.
        origin: as in `train_sources`.
        workers: threads that decode images.
    """
    started = time.monotonic()
    device = best_device()
    sidecar = read_sidecar(data / "dataset.json")
    train_loader = open_loader(data, "train", stage.recipe, device, workers)
    test_loader = open_loader(data, "test", stage.recipe, device, workers)
    train_examples = np.arange(len(train_loader.labels))
    test_examples = np.arange(len(test_loader.labels))
    normalize = Normalize(sidecar, device)
    partial = PartialShard(table, origin.digest)
    models = read_table(sources, ["model"])["model"].to_pylist()
    for number in unfinished(models, partial):
        name = f"source model {number} on {stage.target}, {stage.mode}"
        model = build_model(stage.architecture, len(sidecar.classes), seeds(number).weights)
        load_backbone(model, read_weights(weights, number))
        freeze_for(model, stage.mode)
        model = place(model, device)
        train(
            model,
            train_loader,
            train_examples,
            normalize,
            stage.recipe,
            seeds(number),
            device,
            name,
        )
        evaluation = evaluate(model, test_loader, test_examples, normalize, stage.recipe, device)
        log.info("%s: accuracy %.4f", name, evaluation.accuracy)
        partial.save(number, transfer_row(number, evaluation))
    seconds = time.monotonic() - started
    finish(models, partial, table, origin.provenance(device_name(device), seconds))


def unfinished(models: list[int], partial: PartialShard) -> Iterator[int]:
    """Yield the models that an earlier run of the job did not finish, with a progress bar."""
    waiting = [number for number in models if not partial.has(number)]
    if len(waiting) < len(models):
        log.info("%d of %d models were finished before", len(models) - len(waiting), len(models))
    yield from progress(waiting, "models", "model")


def finish(models: list[int], partial: PartialShard, table: Path, provenance: str) -> None:
    """Write the rows of all models to the shard's table, and remove the partial results."""
    rows = pa.concat_tables([partial.row(number) for number in models])
    write_table(rows, table, provenance)
    partial.remove()


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


def source_row(source: SourceModel, evaluation: Evaluation, own: np.ndarray) -> pa.Table:
    """Return the one-row table of a source model.

    `own` are the test examples of the classes that the model was trained on: `accuracy` is over
    these, while `class_accuracy` has all classes (0 for a class it never saw).
    """
    return pa.table(
        {
            "model": pa.array([source.model], pa.int64()),
            "seed": pa.array([source.seeds.weights], pa.int64()),
            "mask": pa.array([pack(source.mask)], pa.binary(-(-len(source.mask) // 8))),
            "accuracy": pa.array([float(evaluation.is_correct[own].mean())]),
            "class_accuracy": list_column(evaluation.class_accuracy[None]),
        }
    )


def transfer_row(model: int, evaluation: Evaluation) -> pa.Table:
    """Return the one-row table of a transferred model."""
    per_example = {name: list_column(getattr(evaluation, name)[None]) for name in PER_EXAMPLE}
    return pa.table(
        {
            "model": pa.array([model], pa.int64()),
            "accuracy": pa.array([evaluation.accuracy]),
            "loss": pa.array([evaluation.loss]),
            "auroc": pa.array([evaluation.auroc], pa.float64()),
            "class_accuracy": list_column(evaluation.class_accuracy[None]),
            **per_example,
        }
    )
