"""Train or transfer the models of one shard, one after the other, and write what they leave."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from transfer_influence.config.recipe import Architecture, Recipe
from transfer_influence.config.stages import ImportStage, TransferStage
from transfer_influence.config.study import Unit, checkpoint_path
from transfer_influence.datasets.loaders import Loader, open_loader
from transfer_influence.datasets.sidecar import read_sidecar
from transfer_influence.datasets.staging import staged
from transfer_influence.job import JobOptions, all_devices
from transfer_influence.models.building import (
    build_model,
    freeze_for,
    load_backbone,
    place,
)
from transfer_influence.models.checkpoints import load_checkpoint, read_checkpoint
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.rows import (
    failed_models,
    identity,
    model_column,
    source_row,
    transfer_row,
    write_rows,
)
from transfer_influence.outcomes.weights import read_weights, write_weights
from transfer_influence.provenance import Origin, with_companions
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.subsets import SourceModel, own_test_examples, training_examples
from transfer_influence.training.devices import best_device, device_name
from transfer_influence.training.evaluation import Evaluation, evaluate
from transfer_influence.training.loop import Normalize, NotFiniteError, train
from transfer_influence.training.watching import Watch, watching

log = logging.getLogger(__name__)

ValidationSplit = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def train_sources(
    models: list[SourceModel],
    unit: Unit,
    data: Path,
    architecture: Architecture,
    recipe: Recipe,
    weights: Path,
    table: Path,
    origin: Origin,
    options: JobOptions,
) -> None:
    """Train source models; write their weights and a table with one row a model.

    Args:
        models: what to train, in this order.
        unit: what their masks keep.
        data: folder of the converted source data set.
        architecture: the network.
        recipe: how to train it.
        weights: safetensors file to write; keys are `{model}/{parameter}`.
        table: Parquet file to write.
        origin: of the result; models that another job of the same origin finished, or is at work
            on, are not trained again.
        options: how to run.

    Raises:
        UserError: see `train`; a loss is not finite, twice, and `options` say to stop.
    """
    started = time.monotonic()
    shard = PartialShard([weights, table], origin.digest)
    by_number = {source.model: source for source in models}
    with all_devices(options) as workers, staged(data, options.scratch) as folder:
        device = best_device()
        sidecar = read_sidecar(folder / "dataset.json")
        train_loader = open_loader(folder, "train", recipe, device, workers)
        test_loader = open_loader(folder, "test", recipe, device, workers)
        normalize = Normalize(sidecar, device)

        def train_one(number: int) -> tuple[pa.Table, dict[str, torch.Tensor]]:
            source, name = by_number[number], f"source model {number}"
            assert source.seeds is not None
            model = build_model(architecture, len(sidecar.classes), source.seeds.weights)
            model = place(model, device)
            kept = training_examples(source.mask, unit, train_loader.labels)
            own = own_test_examples(source.mask, unit, test_loader.labels)

            def test() -> dict[str, float]:
                return summed_up(evaluate(model, test_loader, own, normalize, recipe, device))

            with watching(options.tensorboard, table, number) as watch:
                train(
                    *(model, train_loader, kept, normalize, recipe, source.seeds, device, name),
                    test=test,
                    watch=watch,
                )
            return evaluated(source, unit, model, test_loader, normalize, recipe, device)

        for number in shard.unfinished(list(by_number)):
            failed = identity(by_number[number], failed=True)
            shard.save(number, *trained(number, train_one, failed, shard, options))
        finish_sources(list(by_number), shard, weights, origin, device, started)


def import_sources(
    models: list[SourceModel],
    stage: ImportStage,
    data: Path,
    weights: Path,
    table: Path,
    origin: Origin,
    options: JobOptions,
) -> None:
    """Read source models from checkpoints and evaluate them; write what `train_sources` does.

    Args:
        models: what to read, in this order.
        stage: where the checkpoints are, and the network and recipe to evaluate them with.
        data: folder of the converted source data set.
        weights: safetensors file to write.
        table: Parquet file to write.
        origin: as in `train_sources`.
        options: how to run.

    Raises:
        UserError: see `read_checkpoint` and `load_checkpoint`; or the loss of a model is not
            finite, and `options` say to stop.
    """
    started = time.monotonic()
    shard = PartialShard([weights, table], origin.digest)
    by_number = {source.model: source for source in models}
    with all_devices(options) as workers, staged(data, options.scratch) as folder:
        device = best_device()
        sidecar = read_sidecar(folder / "dataset.json")
        test_loader = open_loader(folder, "test", stage.recipe, device, workers)
        normalize = Normalize(sidecar, device)

        def import_one(number: int) -> tuple[pa.Table, dict[str, torch.Tensor]]:
            source, path = by_number[number], checkpoint_path(stage.checkpoints, number)
            model = build_model(stage.architecture, len(sidecar.classes), seed=0)
            load_checkpoint(model, read_checkpoint(path, stage.state_key, stage.key_map), path)
            model = place(model, device)
            return evaluated(
                source, stage.unit, model, test_loader, normalize, stage.recipe, device
            )

        for number in shard.unfinished(list(by_number)):
            failed = identity(by_number[number], failed=True)
            shard.save(number, *trained(number, import_one, failed, shard, options, attempts=1))
        finish_sources(list(by_number), shard, weights, origin, device, started)


def evaluated(
    source: SourceModel,
    unit: Unit,
    model: nn.Module,
    loader: Loader,
    normalize: Normalize,
    recipe: Recipe,
    device: torch.device,
) -> tuple[pa.Table, dict[str, torch.Tensor]]:
    """Return the row of a source model, evaluated on all images of `loader`, and its weights.

    Raises:
        NotFiniteError: see `check_loss`.
    """
    name = f"source model {source.model}"
    everything = np.arange(len(loader.labels))
    evaluation = evaluate(model, loader, everything, normalize, recipe, device)
    check_loss(evaluation, name, source.seeds, recipe)
    own = own_test_examples(source.mask, unit, loader.labels)
    row = source_row(source, evaluation, own)
    log.info("%s: ends, accuracy on its own classes %.4f", name, row["accuracy"][0].as_py())
    state = model.state_dict().items()
    return row, {key: value.cpu().contiguous() for key, value in state}


def finish_sources(
    models: list[int],
    shard: PartialShard,
    weights: Path,
    origin: Origin,
    device: torch.device,
    started: float,
) -> None:
    """Write weights and table of a shard of source models that are all done."""

    def write(kept_weights: Path, kept_table: Path) -> None:
        # Without time and device, so that equal weights are equal files.
        write_weights(models, shard, kept_weights, (origin.work or origin).statement)
        made = origin.provenance(device_name(device), time.monotonic() - started)
        provenance = with_companions(made, {weights.name: kept_weights})
        write_rows(models, shard, kept_table, provenance)

    shard.finish(write, origin.provenance())


def transfer(
    weights: Path,
    sources: Path,
    stage: TransferStage,
    data: Path,
    table: Path,
    origin: Origin,
    options: JobOptions,
    validation: ValidationSplit | None = None,
) -> None:
    """Transfer every source model of a shard to one target; write one row a model.

    A source model that failed has a row that says so here too. With a validation split, each model
    is transferred once more, by the other training images alone, and its row has the accuracy of
    that on the split, as `validation_accuracy`, and how many images that are: `validation_images`.

    Args:
        weights: safetensors file of the source models.
        sources: table of the source models.
        stage: target, mode and recipe.
        data: folder of the converted target data set.
        table: Parquet file to write.
        origin: as in `train_sources`.
        options: how to run.
        validation: from the labels of the training images to the indices of those to train on and
            of those to evaluate on.

    Raises:
        UserError: as in `train_sources`; or see `validation`.
    """
    started = time.monotonic()
    shard = PartialShard([table], origin.digest)
    source_failed = failed_models(sources)
    with all_devices(options) as workers, staged(data, options.scratch) as folder:
        device = best_device()
        sidecar = read_sidecar(folder / "dataset.json")
        train_loader = open_loader(folder, "train", stage.recipe, device, workers)
        test_loader = open_loader(folder, "test", stage.recipe, device, workers)
        train_examples = np.arange(len(train_loader.labels))
        test_examples = np.arange(len(test_loader.labels))
        normalize = Normalize(sidecar, device)

        parts = validation(train_loader.labels) if validation else None

        def outcome(
            number: int,
            name: str,
            examples: np.ndarray,
            loader: Loader,
            tests: np.ndarray,
            watch: Watch | None = None,
        ) -> Evaluation:
            """Transfer a model by some training images, and evaluate it on others."""
            scope = stage.target, stage.mode
            seeds = TrainingSeeds.from_stream(stream(stage.seed, Stage.TRANSFER, number, *scope))
            model = build_model(stage.architecture, len(sidecar.classes), seeds.weights)
            load_backbone(model, read_weights(weights, number))
            freeze_for(model, stage.mode)
            model = place(model, device)

            def tested() -> Evaluation:
                return evaluate(model, loader, tests, normalize, stage.recipe, device)

            train(
                *(model, train_loader, examples, normalize, stage.recipe),
                *(seeds, device, name),
                test=lambda: summed_up(tested()),
                watch=watch,
            )
            evaluation = tested()
            check_loss(evaluation, name, seeds, stage.recipe)
            log.info("%s: ends, accuracy %.4f", name, evaluation.accuracy)
            return evaluation

        def transfer_one(number: int) -> tuple[pa.Table, None]:
            name = f"source model {number} on {stage.target}, {stage.mode}"
            with watching(options.tensorboard, table, number) as watch:
                tested = outcome(number, name, train_examples, test_loader, test_examples, watch)
            row = transfer_row(number, tested)
            if parts:
                validated = outcome(number, f"{name}, validated", parts[0], train_loader, parts[1])
                row = row.append_column("validation_accuracy", pa.array([validated.accuracy]))
                images = pa.array([len(parts[1])], pa.int32())
                row = row.append_column("validation_images", images)
            return row, None

        for number in shard.unfinished(list(source_failed)):
            failed = model_column(number, failed=True)
            if source_failed[number]:
                shard.save(number, failed)
            else:
                shard.save(number, *trained(number, transfer_one, failed, shard, options))

        def write(table: Path) -> None:
            provenance = origin.provenance(device_name(device), time.monotonic() - started)
            write_rows(list(source_failed), shard, table, provenance)

        shard.finish(write, origin.provenance())


def trained(
    number: int,
    train_one: Callable[[int], tuple[pa.Table, dict[str, torch.Tensor] | None]],
    failed: pa.Table,
    shard: PartialShard,
    options: JobOptions,
    attempts: int = 2,
) -> tuple[pa.Table, dict[str, torch.Tensor] | None]:
    """Train a model, once more with the same seeds if its loss is not finite.

    Returns:
        Its row and weights; if all attempts failed and `options` say to go on without it, the row
        `failed` and no weights.

    Raises:
        NotFiniteError: all attempts failed and `options` say to stop.
    """
    reason = shard.failure(number)
    while reason is None:
        try:
            return train_one(number)
        except NotFiniteError as failure:
            attempts -= 1
            if attempts:
                log.warning("%s Once more, with the same seeds.", failure)
                continue
            reason = str(failure)
            shard.save_failure(number, reason)
    if options.failed_models == "stop":
        raise NotFiniteError(f"{reason} To go on without such models, set failed_models: exclude.")
    log.error("%s The study goes on without it.", reason)
    return failed, None


def summed_up(evaluation: Evaluation) -> dict[str, float]:
    """Return what to tell of a model while it trains."""
    return {"accuracy": evaluation.accuracy, "loss": evaluation.loss}


def check_loss(
    evaluation: Evaluation, name: str, seeds: TrainingSeeds | None, recipe: Recipe
) -> None:
    """Refuse a model that only the last step of its training has spoilt.

    Raises:
        NotFiniteError: its loss on the test images is not finite.
    """
    if not np.isfinite(evaluation.loss):
        whose = f"{name} (seeds {seeds})" if seeds else name
        remedy = (
            f"lower the recipe's learning_rate ({recipe.learning_rate})"
            if seeds
            else "replace its checkpoint"
        )
        raise NotFiniteError(
            f"{whose}: the loss on the test images is {evaluation.loss}; {remedy}."
        )
