"""The finished models of an unfinished shard, so that a killed job goes on where it stopped.

They lie beside the declared outputs, which Snakemake deletes before it runs a job again, in a
folder named after all that decides the result: a job with other settings finds nothing to resume.
"""

import contextlib
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from transfer_influence.files import atomic


class PartialShard:
    """Finished models of the shard that will become `output`."""

    def __init__(self, output: Path, digest: str) -> None:
        self._all = output.parent / ".partial"
        self._shard = output.stem
        self._folder = self._all / f"{self._shard}-{digest}"

    def has(self, model: int) -> bool:
        """Tell whether a model is finished."""
        return self._row(model).exists()

    def save(
        self, model: int, row: pa.Table, weights: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Keep a finished model: its one-row table and, if given, its weights."""
        if weights is not None:
            with atomic(self._weights(model)) as temporary:
                save_file(weights, temporary)
        # The row comes last, as it is what says that the model is finished.
        with atomic(self._row(model)) as temporary:
            pq.write_table(row, temporary)

    def row(self, model: int) -> pa.Table:
        """Return the one-row table of a finished model."""
        return pq.read_table(self._row(model))

    def weights(self, model: int) -> dict[str, torch.Tensor]:
        """Return the weights of a finished model."""
        return load_file(self._weights(model))

    def remove(self) -> None:
        """Remove all partial results of this shard, whatever settings they were made with."""
        for folder in self._all.glob(f"{self._shard}-*"):
            # Another shard's name may begin with this one's, but digests hold no dash.
            if folder.name.rpartition("-")[0] == self._shard:
                shutil.rmtree(folder)
        # Other jobs may be at work beside this one.
        with contextlib.suppress(OSError):
            self._all.rmdir()

    def _row(self, model: int) -> Path:
        return self._folder / f"{model}.parquet"

    def _weights(self, model: int) -> Path:
        return self._folder / f"{model}.safetensors"
