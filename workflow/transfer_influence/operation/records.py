"""Snakemake's records of results, kept in step with what the results say of themselves.

Snakemake asks its records whether a result is stale. It writes them when it sees a job finish, so
results of jobs that finished while it was dead have none, and neither have results that were copied
without `.snakemake`. Each result says itself what made it (`transfer_influence.provenance`), so a
record is only a copy of that, which spares opening the file: it counts as long as the file has the
time that the record names; else the file is asked, and a new record written, but in a dry run.

A result is stale if its settings, its code or the content of its inputs differ from what they are
now. Times decide nothing.

Snakemake has no public way to say so. This is the one place that depends on its inner parts: the
name of the class in `snakemake.workflow`, and the methods of it that are overridden below.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import snakemake.workflow
from snakemake.exceptions import WorkflowError
from snakemake.persistence import RECORD_FORMAT_VERSION, MetadataRecord, ParamsChange
from snakemake.persistence.file import FilePersistence

from transfer_influence.errors import UserError
from transfer_influence.provenance import (
    CONVERTED,
    Identity,
    differences,
    find_provenance,
    fingerprint,
    identity,
    same_code,
)

SAME = "origin:same"  # what stands for the checksum of an input that is judged by its content
DECIDING = ("settings", "inputs", "code")
KEPT = (*DECIDING, "digest", "companions")  # of a provenance, in a record


def install() -> None:
    """Let Snakemake judge results by what they say of themselves, from its next DAG on.

    Raises:
        UserError: this version of Snakemake has other inner parts.
    """
    parts = ("_read_record", "_write_record", "params_changed", "input_checksums", "incomplete")
    if not hasattr(snakemake.workflow, "FilePersistence") or not all(
        hasattr(FilePersistence, part) for part in parts
    ):
        raise UserError(
            f"Snakemake {snakemake.__version__} keeps its records in another way than this "
            f"workflow knows; install the version of envs/requirements.lock."
        )
    snakemake.workflow.FilePersistence = OriginPersistence


@dataclass
class OriginChange(ParamsChange):
    """Why a result is stale, in words that Snakemake prints as the reason of the job."""

    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        return "; ".join(self.reasons)


class OriginPersistence(FilePersistence):
    """Records that follow the origin that each result carries.

    Rules that have a parameter `code` make results that carry their origin in the first output,
    their account; others, if any, are left to Snakemake.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Inputs are compared by content: large ones too, and without reading them here.
        self.max_checksum_file_size = 0
        self.dag.max_checksum_file_size = float("inf")
        self._identities: dict[str, str] = {}
        self._told: dict[str, dict[str, Any] | None] = {}
        self._judged: dict[Any, OriginChange] = {}

    def has_metadata(self, job: Any) -> bool:
        return _is_judged(job) or super().has_metadata(job)

    def has_outdated_metadata(self, job: Any) -> bool:
        return not _is_judged(job) and super().has_outdated_metadata(job)

    def params_changed(self, job: Any, file: Any = None) -> Any:
        return self._judgement(job) if _is_judged(job) else super().params_changed(job, file)

    def input_changed(self, job: Any, file: Any = None) -> Any:
        if _is_judged(job):  # as above, by content and not by name
            return False if file is not None else iter(())
        return super().input_changed(job, file)

    def input_checksums(self, job: Any, input_path: Any) -> set[Any]:
        """Say that an input is the same, however new it is; `params_changed` compares contents."""
        if not _is_judged(job):
            return super().input_checksums(job, input_path)
        self.dag.workflow.iocache.checksum[input_path] = SAME
        return {SAME}

    async def finished(self, job: Any) -> None:
        await super().finished(job)
        if _is_judged(job):
            self._clear_judgements()
            self._record(job, self._read(job.output[0]))

    async def incomplete(self, job: Any) -> list[Any]:
        """Return the outputs that are not whole; those of a job that ended unseen are.

        They appear when they are whole and not before, and the account comes last.
        """
        files = await super().incomplete(job)
        if not files or not _is_judged(job) or self._read(job.output[0]) is None:
            return files
        if self._may_write():
            for file in job.output:
                self._unmark_incomplete(self._get_key(file))
        return []

    def deactivate_cache(self) -> None:
        super().deactivate_cache()
        self._clear_judgements()

    def _clear_judgements(self) -> None:
        self._identities.clear()
        self._told.clear()
        self._judged.clear()

    def _judgement(self, job: Any) -> OriginChange:
        if job not in self._judged:
            recorded = self._recorded(job)
            told = recorded or self._read(job.output[0])
            reasons = tuple(self._reasons(job, told, verified=recorded is not None))
            self._judged[job] = OriginChange(
                files=set(job.output if reasons else ()), reasons=reasons
            )
            if recorded is None and not reasons and self._may_write():
                self._record(job, told)
        return self._judged[job]

    def _reasons(self, job: Any, told: dict[str, Any] | None, verified: bool) -> Iterator[str]:
        """Yield why the outputs of a job are stale.

        Args:
            job: the job.
            told: what the outputs say of themselves, if anything.
            verified: whether the outputs are known to be the ones that belong together.
        """
        if told is None:
            if os.path.exists(job.output[0]):  # else Snakemake knows whether it is needed
                yield f"{job.output[0]} does not say what made it"
            return
        yield from differences(told["settings"], json.loads(job.params.get("settings", "{}")))
        if not same_code(told["code"], job.params.code):
            yield f"made by other code ({told['code']}); it is {job.params.code} now"
        yield from self._other_inputs(job, told["inputs"], verified)
        if not verified:
            yield from _other_companions(job, told.get("companions", {}))

    def _other_inputs(self, job: Any, told: dict[str, Identity], verified: bool) -> Iterator[str]:
        given = _inputs(job)
        for name in dict.fromkeys([*told, *given]):
            files = given.get(name, [])
            if name not in told and all(_is_vouched_for(file, given) for file in files):
                continue
            before = told.get(name, [])
            now = [self._identity(file) for file in files]
            missing = [file for file, of in zip(files, now, strict=True) if of is None]
            if missing:
                # A new one of several, unless it was deleted since; a single one cannot be new.
                if isinstance(before, list) and not (verified and self._has_same_names(job)):
                    yield f"made without {_few(missing)}"
            elif now != ([before] if isinstance(before, str) else before):
                yield f"made from another {name} ({_few(files)})" if files else f"made with {name}"

    def _has_same_names(self, job: Any) -> bool:
        record = self._read_record(self._get_key(job.output[0]))
        return record is not None and record.input == self._input(job)

    def _identity(self, path: str) -> str | None:
        """Return the identity of an input; None if it is still to be made."""
        if path not in self._identities:
            record = self._read_record(path)
            told = _origin_in(record) if record and _is_of(record, path) else None
            known = _digest_in(told, path) if told else None
            if known is None and not os.path.exists(path):
                return None
            try:
                self._identities[path] = known or identity(Path(path))
            except UserError as error:
                raise WorkflowError(str(error)) from None
        return self._identities[path]

    def _recorded(self, job: Any) -> dict[str, Any] | None:
        """Return what the outputs say by their records, if these are of the very files."""
        for file in job.output:
            record = self._read_record(self._get_key(file))
            if record is None or not _is_of(record, file):
                return None
        return _origin_in(record)

    def _read(self, path: str) -> dict[str, Any] | None:
        if path not in self._told:
            try:
                told = find_provenance(Path(path))
            except OSError:
                told = None
            self._told[path] = told if told and set(DECIDING) <= set(told) else None
        return self._told[path]

    def _record(self, job: Any, told: dict[str, Any] | None) -> None:
        """Write the records of a job's outputs anew, from what these say of themselves."""
        if told is None:
            return
        kept = {key: told[key] for key in KEPT if key in told} | {"account": str(job.output[0])}
        for file in job.output:
            if not os.path.exists(file):
                continue
            key = self._get_key(file)
            record = self._read_record(key) or MetadataRecord()
            record.record_format_version = RECORD_FORMAT_VERSION
            record.incomplete = False
            record.rule = job.rule.name
            record.input = self._input(job)
            record.log = self._log(job)
            record.code = record.code or self._code(job.rule)
            record.params = [json.dumps(kept)]
            record.endtime = os.stat(file).st_mtime
            record.starttime = record.starttime or record.endtime - (told.get("seconds") or 0)
            record.input_checksums = {}
            self._write_record(key, record)
        self._clear_cache()

    def _may_write(self) -> bool:
        """Tell whether jobs are to run: to look at a study must change no file."""
        workflow = self.dag.workflow
        return workflow.executor_plugin is not None and not workflow.dryrun


def _is_judged(job: Any) -> bool:
    return "code" in job.params.keys() and bool(job.output)  # noqa: SIM118


def _inputs(job: Any) -> dict[str, list[str]]:
    """Return the inputs of a job by the name that its rule gives them."""
    given = {}
    for name in job.input.keys():  # noqa: SIM118
        files = getattr(job.input, name)
        files = [files] if isinstance(files, str) else list(files)
        if files and not all(file.is_ancient for file in files):
            given[name] = [str(file) for file in files]
    return given


def _is_vouched_for(path: str, given: dict[str, list[str]]) -> bool:
    """Tell whether an input is a file of a converted data set whose sidecar is an input as well."""
    sidecar = os.path.join(os.path.dirname(path), "dataset.json")
    vouched = CONVERTED.fullmatch(os.path.basename(path))
    return bool(vouched) and any(sidecar in files for files in given.values())


def _other_companions(job: Any, told: dict[str, str]) -> Iterator[str]:
    """Yield the outputs that are not those that the account was written with."""
    for file in job.output[1:]:
        known = told.get(os.path.basename(file))
        if known and os.path.exists(file) and fingerprint(Path(file)) != known:
            yield f"{file} is not the one that {job.output[0]} was made with"


def _origin_in(record: MetadataRecord) -> dict[str, Any] | None:
    """Return the origin in a record; None in one that Snakemake alone has written."""
    try:
        told = json.loads((record.params or [""])[0])
    except ValueError:
        return None
    return told if isinstance(told, dict) and "account" in told else None


def _digest_in(told: dict[str, Any], path: str) -> str | None:
    """Return the digest of one of the outputs that share an origin, where that has it."""
    if told["account"] == path:
        return told.get("digest")
    known = told.get("companions", {}).get(os.path.basename(path))
    return None if CONVERTED.fullmatch(os.path.basename(path)) else known


def _is_of(record: MetadataRecord, path: str) -> bool:
    try:
        return record.endtime == os.stat(path).st_mtime
    except OSError:
        return False


def _few(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
