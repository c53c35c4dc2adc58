"""What happens to each source model of a shard: trained, evaluated, kept."""

import logging
from collections.abc import Callable
from pathlib import Path

from torch import nn

from transfer_influence.config.stages import RemovalStage, SourceStage
from transfer_influence.config.study import Unit
from transfer_influence.job import JobOptions
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.rows import Effort, identity, source_row, write_rows
from transfer_influence.outcomes.weights import write_weights
from transfer_influence.provenance import Origin, with_companions
from transfer_influence.subsets import SourceModel, own_test_examples, training_examples
from transfer_influence.training.devices import device_name
from transfer_influence.training.shard import Left, check_loss, train_each
from transfer_influence.training.trainer import Trainer, open_trainer
from transfer_influence.training.watching import watching

log = logging.getLogger(__name__)


def train_sources(
    models: list[SourceModel],
    stage: SourceStage | RemovalStage,
    data: Path,
    weights: Path,
    table: Path,
    origin: Origin,
    options: JobOptions,
) -> None:
    """Train source models; write their weights and a table with one row a model.

    Args:
        models: what to train, in this order.
        stage: what their masks keep, the network, and how to train it.
        data: folder of the converted source data set.
        weights: safetensors file to write; keys are `{model}/{parameter}`.
        table: Parquet file to write.
        origin: of the result; models that another job of the same origin finished, or is at work
            on, are not trained again.
        options: how to run.

    Raises:
        UserError: see `Trainer.fit`; a loss is not finite, twice, and `options` say to stop.
    """
    shard = PartialShard([weights, table], origin.digest)
    with open_trainer(data, stage.recipe, options) as trainer:

        def train(source: SourceModel) -> tuple[nn.Module, Effort]:
            assert source.seeds is not None
            model = trainer.build(stage.architecture, source.seeds.weights)
            kept = training_examples(source.mask, stage.unit, trainer.train_loader.labels)
            own = own_test_examples(source.mask, stage.unit, trainer.test_loader.labels)
            with watching(options.tensorboard, table, source.model) as watch:
                effort = trainer.fit(
                    model,
                    kept,
                    source.seeds,
                    name_of(source),
                    as_for=len(trainer.train_loader.labels) if keeps_steps(stage) else None,
                    test=lambda: trainer.evaluate(model, own),
                    watch=watch,
                )
            return model, effort

        make_each(shard, models, train, trainer, stage.unit, options)
        finish(shard, models, weights, origin, trainer)


def keeps_steps(stage: SourceStage | RemovalStage) -> bool:
    """Tell whether models take as many steps as with nothing removed."""
    return isinstance(stage, RemovalStage) and stage.budget == "steps"


def make_each(
    shard: PartialShard,
    models: list[SourceModel],
    make: Callable[[SourceModel], tuple[nn.Module, Effort]],
    trainer: Trainer,
    unit: Unit,
    options: JobOptions,
    attempts: int = 2,
) -> None:
    """Make the models of a shard, evaluate each on all test images, and keep row and weights."""
    sources = {source.model: source for source in models}

    def left_by(number: int) -> Left:
        source = sources[number]
        model, effort = make(source)
        evaluation = trainer.evaluate(model)
        check_loss(evaluation, name_of(source), source.seeds, trainer.recipe)
        own = own_test_examples(source.mask, unit, trainer.test_loader.labels)
        row = source_row(source, evaluation, own, effort)
        accuracy = row["accuracy"][0].as_py()
        log.info("%s: ends, accuracy on its own classes %.4f", name_of(source), accuracy)
        state = model.state_dict().items()
        return row, {key: value.cpu().contiguous() for key, value in state}

    failed = {number: identity(source, failed=True) for number, source in sources.items()}
    train_each(shard, failed, left_by, options.failed_models, attempts)


def finish(
    shard: PartialShard,
    models: list[SourceModel],
    weights: Path,
    origin: Origin,
    trainer: Trainer,
) -> None:
    """Write weights and table of a shard of source models that are all done."""
    numbers = [source.model for source in models]

    def write(kept: Path, table: Path) -> None:
        # Without time and device, so that equal weights are equal files.
        write_weights(numbers, shard, kept, (origin.work or origin).statement)
        made = origin.provenance(device_name(trainer.device), shard.seconds)
        write_rows(numbers, shard, table, with_companions(made, {weights.name: kept}))

    shard.finish(write, origin.provenance())


def name_of(source: SourceModel) -> str:
    """Return what logs and errors call a source model."""
    return f"source model {source.model}"
