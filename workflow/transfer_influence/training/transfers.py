"""What happens to each source model of a shard on a target: transferred, evaluated, kept."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from transfer_influence.config.stages import TransferStage
from transfer_influence.datasets.loaders import Split
from transfer_influence.job import JobOptions
from transfer_influence.models.building import freeze_for, load_backbone
from transfer_influence.outcomes.evaluation import Evaluation
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.rows import failed_models, model_column, transfer_row, write_rows
from transfer_influence.outcomes.weights import read_weights
from transfer_influence.provenance import Origin
from transfer_influence.seeds import Stage, TrainingSeeds, stream
from transfer_influence.training.devices import device_name
from transfer_influence.training.shard import Left, check_loss, train_each
from transfer_influence.training.trainer import open_trainer
from transfer_influence.training.watching import Watch, watching

log = logging.getLogger(__name__)

ValidationSplit = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


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
        origin: of the result; models that another job of the same origin finished, or is at work
            on, are not transferred again.
        options: how to run.
        validation: from the labels of the training images to the indices of those to train on and
            of those to evaluate on.

    Raises:
        UserError: see `Trainer.fit` and `validation`; or a loss is not finite, twice, and `options`
            say to stop.
    """
    shard = PartialShard([table], origin.digest)
    source_failed = failed_models(sources)
    failed = {number: model_column(number, failed=True) for number in source_failed}
    with open_trainer(data, stage.recipe, options) as trainer:
        labels = trainer.train_loader.labels
        parts = validation(labels) if validation else None

        def outcome(
            number: int,
            name: str,
            examples: np.ndarray,
            tests: np.ndarray | None = None,
            split: Split = "test",
            watch: Watch | None = None,
        ) -> Evaluation:
            """Transfer a model by some training images, and evaluate it on others."""
            scope = stage.target, stage.mode
            seeds = TrainingSeeds.from_stream(stream(stage.seed, Stage.TRANSFER, number, *scope))
            model = trainer.build(stage.architecture, seeds.weights)
            load_backbone(model, read_weights(weights, number))
            freeze_for(model, stage.mode)

            def evaluate() -> Evaluation:
                return trainer.evaluate(model, tests, split)

            if stage.mode == "fixed" and stage.recipe.head.solver == "lbfgs":
                trainer.solve_head(model, examples, name)
            else:
                trainer.fit(model, examples, seeds, name, test=evaluate, watch=watch)
            evaluation = evaluate()
            check_loss(evaluation, name, seeds, stage.recipe)
            log.info("%s: ends, accuracy %.4f", name, evaluation.accuracy)
            return evaluation

        def left_by(number: int) -> Left:
            if source_failed[number]:
                return failed[number], None
            name = f"source model {number} on {stage.target}, {stage.mode}"
            with watching(options.tensorboard, table, number) as watch:
                tested = outcome(number, name, np.arange(len(labels)), watch=watch)
            row = transfer_row(number, tested)
            if parts:
                examples, held_out = parts
                name = f"{name}, validated"
                validated = outcome(number, name, examples, held_out, split="train")
                row = row.append_column("validation_accuracy", pa.array([validated.accuracy]))
                images = pa.array([len(held_out)], pa.int32())
                row = row.append_column("validation_images", images)
            return row, None

        train_each(shard, failed, left_by, options.failed_models)

        def write(table: Path) -> None:
            provenance = origin.provenance(device_name(trainer.device), shard.seconds)
            write_rows(list(source_failed), shard, table, provenance)

        shard.finish(write, origin.provenance())
