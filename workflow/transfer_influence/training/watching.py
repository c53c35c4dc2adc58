"""Curves of a training run for TensorBoard. Nothing here changes a result."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Watch = Callable[[int, dict[str, float]], None]


@contextmanager
def watching(tensorboard: Path | None, table: Path, model: int) -> Iterator[Watch | None]:
    """Write the curves of one model to a folder of its own.

    The folder stands where the model's table stands: those of `results/demo/sources/s.parquet` are
    in `results/demo/tensorboard/sources/s/{model}`. A model that is trained again, as its job was
    killed, takes the place of its unfinished curves; those of finished models stay.

    Args:
        tensorboard: folder of all curves, beside the tables of the study; None to write none.
        table: table that the model will have a row in.
        model: its number.

    Yields:
        What `train` is to call after each epoch.
    """
    if tensorboard is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    folder = tensorboard / run_name(tensorboard, table) / str(model)
    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(folder) as writer:

        def watch(epoch: int, known: dict[str, float]) -> None:
            for name, value in known.items():
                writer.add_scalar(name, value, epoch)

        yield watch


def run_name(tensorboard: Path, table: Path) -> Path:
    """Return where in its folder TensorBoard finds the models of a table."""
    home = tensorboard.absolute().parent
    table = table.absolute().with_suffix("")
    return table.relative_to(home) if table.is_relative_to(home) else Path(table.name)
