"""A shard in the making: its finished models, and who is at work on which.

Any number of jobs may work on one shard: the processes of one job, a job that was started again
while its earlier copy still ran, two controllers. They share its models by claims, each finished
model is kept at once, and whoever finds them all finished writes the outputs. A killed job
therefore loses the model it was training, and none is trained twice.

All of it lies beside the outputs, under names that hold the digest of all that decides the result,
so that a job with other settings finds nothing to resume:

    .partial/{shard}-{digest}/       finished models and claims, until the shard is whole
    .{shard}.{digest}.{suffix}       the outputs, as they are written
    .{shard}.{digest}.json           their SHA-256: the shard is whole

Snakemake deletes the outputs of a job before it runs the job again, even while an earlier copy of
the job still writes them. So they are written under names it does not know, and put in place as
hard links, which take no space: a job that is run again only puts them back.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from transfer_influence.claims import Claims
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes.tables import read_table, write_table
from transfer_influence.progress import progress
from transfer_influence.provenance import read_provenance

log = logging.getLogger(__name__)

POLL = 2.0  # seconds between two looks at what others are doing


class PartialShard:
    """The shard that will become `outputs`, files of one folder that share their stem."""

    def __init__(self, outputs: list[Path], digest: str) -> None:
        self._outputs = outputs
        self._shard = outputs[0].stem
        self._digest = digest
        self._home = outputs[0].parent
        self._folder = self._home / ".partial" / f"{self._shard}-{digest}"
        self._record = self._kept(outputs[0].with_suffix(".json"))
        self._claims = Claims(self._folder)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """For how long this process has been at work on the shard."""
        return time.monotonic() - self._started

    def unfinished(self, models: list[int]) -> Iterator[int]:
        """Yield the models that nobody has finished, each claimed until the next is asked for.

        Ends when all are finished, by whomever: while the last ones are another's, it waits for
        them, or for their owner to die.
        """
        self._forget_if_damaged()
        self._reopen(models)
        waiting = [model for model in models if not self.has(model)]
        if len(waiting) < len(models):
            log.info(
                "%d of %d models were finished before", len(models) - len(waiting), len(models)
            )
        if waiting:
            yield from progress(self._claimed(waiting), "models", "model", len(waiting))

    def has(self, model: int) -> bool:
        """Tell whether a model is finished."""
        # In this order: the models are removed once the shard is whole.
        return self._row(model).exists() or self._is_whole()

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
        """Return the weights of a finished model; none for one that was saved without."""
        path = self._weights(model)
        return load_file(path) if path.exists() else {}

    def failure(self, model: int) -> str | None:
        """Return why a model cannot be trained, if that is known."""
        try:
            return json.loads(self._failure(model).read_text())
        except FileNotFoundError:
            return None

    def save_failure(self, model: int, reason: str) -> None:
        """Keep why a model cannot be trained, so that nobody tries once more."""
        with atomic(self._failure(model)) as temporary:
            temporary.write_text(json.dumps(reason))

    def finish(self, write: Callable[..., None], provenance: str) -> None:
        """Have one of those at work write the outputs, once all models are finished.

        Args:
            write: writes them to the paths it is called with, one for each output.
            provenance: what the last output, a table, says of itself, as JSON.

        Raises:
            UserError: a job with other settings has written the outputs meanwhile.
        """
        while not self._is_whole():
            with self._claims.claimed("outputs") as ours:
                if ours and not self._is_whole():
                    write(*map(self._kept, self._outputs))
                    self._save_record()
                    break
            time.sleep(POLL)
        self._update(json.loads(provenance))
        self._put_in_place()
        self._tidy()

    def _is_whole(self) -> bool:
        # Opening the folder makes a network file system look at it anew; it may else say for a
        # minute that the record is not there, and models would be trained again.
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(self._home, os.O_RDONLY))
        return self._record.exists()

    def _claimed(self, waiting: list[int]) -> Iterator[int]:
        told: set[int] = set()
        while waiting := [model for model in waiting if not self.has(model)]:
            idle = True
            for model in waiting:
                with self._claims.claimed(str(model)) as ours:
                    # It may have been finished between the look and the claim.
                    if ours and not self.has(model):
                        idle = False
                        yield model
            if idle:
                for model in sorted(set(waiting) - told):
                    owner = self._claims.holder(str(model)) or "another process"
                    log.info("model %d: waiting for %s", model, owner)
                told.update(waiting)
                time.sleep(POLL)

    def _digests(self) -> dict[str, str]:
        kept = {output.suffix: self._kept(output) for output in self._outputs}
        return {suffix: _sha256(path) for suffix, path in kept.items() if path.exists()}

    def _save_record(self) -> None:
        with atomic(self._record) as temporary:
            temporary.write_text(json.dumps(self._digests()))

    def _forget_if_damaged(self) -> None:
        """Have a shard made anew if its files no longer hold what was written."""
        with contextlib.suppress(FileNotFoundError):
            try:
                recorded = json.loads(self._record.read_text())
            except ValueError:
                recorded = None
            if self._digests() != recorded:
                log.warning("%s: damaged since it was written; made anew", self._outputs[-1])
                for output in self._outputs:
                    if output.exists() and _same(output, self._kept(output)):
                        output.unlink()
                self._record.unlink()

    def _reopen(self, models: list[int]) -> None:
        """Take over what is wanted of a shard that was whole with other models."""
        while self._record.exists() and self._whole_models() != models:
            with self._claims.claimed("outputs") as ours:
                if ours and self._record.exists() and self._whole_models() != models:
                    self._take_over(models)
                    for output in self._outputs:
                        if output.exists() and _same(output, self._kept(output)):
                            output.unlink()
                    self._record.unlink()
                    return
            time.sleep(POLL)

    def _whole_models(self) -> list[int]:
        return read_table(self._kept(self._outputs[-1]), ["model"])["model"].to_pylist()

    def _take_over(self, models: list[int]) -> None:
        """Keep those of some models that stand in the outputs as they do there."""
        *others, table = map(self._kept, self._outputs)
        rows = read_table(table).replace_schema_metadata(None)
        tensors = [tensor for path in others for tensor in load_file(path).items()]
        for number, model in enumerate(rows["model"].to_pylist()):
            if model in models:
                start = f"{model}/"
                weights = {
                    name.removeprefix(start): value
                    for name, value in tensors
                    if name.startswith(start)
                }
                self.save(model, rows.slice(number, 1), weights or None)

    def _update(self, provenance: dict[str, Any]) -> None:
        """Let a table that is whole say what this job was given, where that trains the same models.

        The same units may follow from another ranking.
        """
        table, output = self._kept(self._outputs[-1]), self._outputs[-1]
        told = read_provenance(table)
        given = {key: provenance[key] for key in ("inputs", "models")}
        if all(told[key] == value for key, value in given.items()):
            return
        if output.exists() and _same(output, table):
            output.unlink()
        write_table(read_table(table), table, json.dumps(told | given))
        self._save_record()

    def _put_in_place(self) -> None:
        for output in self._outputs:
            kept = self._kept(output)
            if output.exists() and not _same(output, kept):
                raise UserError(
                    f"{output}: another job wrote it meanwhile, with other settings; delete it and "
                    f"run again."
                )
            if not output.exists():
                with atomic(output) as temporary:
                    _link(kept, temporary)
                    os.utime(temporary)  # younger than the inputs, whatever became of these since
                log.info("%s: in place", output)

    def _tidy(self) -> None:
        """Remove what the whole shard needs no more, whatever settings it was made with."""
        shutil.rmtree(self._folder, ignore_errors=True)
        for folder in self._folder.parent.glob(f"{self._shard}-*"):
            # Another shard's name may begin with this one's, but digests hold no dash.
            same = folder.name.rpartition("-")[0] == self._shard
            if same and not Claims(folder).any_held():
                shutil.rmtree(folder, ignore_errors=True)
        # Other jobs may be at work beside this one.
        with contextlib.suppress(OSError):
            self._folder.parent.rmdir()
        for path in self._home.glob(f"..{self._shard}.????????????????.????????.*"):
            path.unlink(missing_ok=True)  # half written when its writer was killed
        suffixes = {".json", *(output.suffix for output in self._outputs)}
        for path in self._home.glob(f".{self._shard}.????????????????.*"):
            if path.suffix in suffixes and path.name.split(".")[-2] != self._digest:
                path.unlink(missing_ok=True)

    def _kept(self, output: Path) -> Path:
        return output.with_name(f".{output.stem}.{self._digest}{output.suffix}")

    def _row(self, model: int) -> Path:
        return self._folder / f"{model}.parquet"

    def _weights(self, model: int) -> Path:
        return self._folder / f"{model}.safetensors"

    def _failure(self, model: int) -> Path:
        return self._folder / f"{model}.failed.json"


def _link(path: Path, other: Path) -> None:
    """Give a file a second name; where the file system cannot, copy it."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _same(path: Path, other: Path) -> bool:
    """Tell whether two files are the same; true if the first is being deleted at this moment."""
    try:
        return path.samefile(other) or _sha256(path) == _sha256(other)
    except FileNotFoundError:
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
