"""What happens to each source model of a shard that exists already: read, evaluated, kept."""

from pathlib import Path

from torch import nn

from transfer_influence.config.stages import ImportStage
from transfer_influence.config.study import checkpoint_path
from transfer_influence.job import JobOptions
from transfer_influence.models.checkpoints import load_checkpoint, read_checkpoint
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.rows import Effort
from transfer_influence.provenance import Origin
from transfer_influence.subsets import SourceModel
from transfer_influence.training.sources import finish, make_each
from transfer_influence.training.trainer import open_trainer


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
    shard = PartialShard([weights, table], origin.digest)
    with open_trainer(data, stage.recipe, options) as trainer:

        def read(source: SourceModel) -> tuple[nn.Module, Effort]:
            path = checkpoint_path(stage.checkpoints, source.model)
            model = trainer.build(stage.architecture, seed=0)
            load_checkpoint(model, read_checkpoint(path, stage.state_key, stage.key_map), path)
            return model, Effort()

        make_each(shard, models, read, trainer, stage.unit, options, attempts=1)
        finish(shard, models, weights, origin, trainer)
