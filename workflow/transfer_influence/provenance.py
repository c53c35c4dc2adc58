"""Where a result came from, written into the result itself.

Every result says what made it: the settings of its job, the identities of the job's inputs, and a
digest of its code. Whether it is stale is decided from that. A job with several outputs says it in
the first of them, its *account*, which is written last and names the others, its *companions*.

Where it stands: Parquet, the metadata of the file; safetensors, its header; SVG, a comment at the
end; JSON, the key `provenance`. Beside the origin stands `digest`, of the content alone, so that a
result that is made again with the same content has the same identity.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from transfer_influence import __version__
from transfer_influence.errors import UserError

LIBRARIES = ("torch", "torchvision", "ffcv", "numpy", "pyarrow")
KEY = "transfer_influence"  # of the metadata of Parquet and safetensors files
SVG_COMMENT = re.compile(rf"<!-- {KEY} (.*) -->\s*\Z".encode())
SVG_TAIL = 2**16  # bytes at the end of an SVG to look for its comment in, at first
# The files of a converted data set whose content the sidecar stands for.
CONVERTED = re.compile(r"(train|test)\.(beton|labels\.npy|examples\.parquet)")
READ_WHOLE = 2**30  # bytes of a companion that is digested whole
BLOCKS, BLOCK = 1024, 2**16  # of a larger one: how many blocks, and their bytes
DESCRIBING = ("train.examples.parquet", "test.examples.parquet")
ACCEPTED = "TRANSFER_INFLUENCE_ACCEPTED_CODE"  # environment variable: see `accepted_code`

Identity = str | list[str]


@dataclass(frozen=True)
class Origin:
    """What decides a result.

    Attributes:
        settings: of the job, as plain JSON values.
        inputs: identity of each input by the name that the rule gives it; a list where the rule has
            several files under one name.
        code: digest of the code, as Snakemake was given it.
        models: what is common to all models behind the result, see `agreed`.
        work: origin of the models that a job trains, where these depend on less than its inputs:
            on which units were removed, say, and not on the ranking that this follows from.
    """

    settings: dict[str, Any]
    inputs: Mapping[str, Identity]
    code: str
    models: dict[str, Any] = field(default_factory=dict)
    work: "Origin | None" = None

    @classmethod
    def of(
        cls,
        settings: dict[str, Any],
        inputs: Mapping[str, Path | Sequence[Path]],
        code: str,
        work: "Origin | None" = None,
    ) -> "Origin":
        """Return the origin of what is made from some files.

        Args:
            settings: as above.
            inputs: files by the name that the rule gives them.
            code: as above.
            work: as above; what it says of models must agree with what the inputs say.

        Raises:
            UserError: the inputs, or the job and its inputs, stand on models that were not made
                alike.
        """
        told: list[tuple[str, dict[str, Any]]] = []

        def look(path: Path) -> str:
            provenance = _found(path)
            told.append((str(path), (provenance or {}).get("models", {})))
            return _identity(path, provenance)

        identities: dict[str, Identity] = {
            name: look(path) if isinstance(path, Path) else [look(one) for one in path]
            for name, path in inputs.items()
        }
        if work is not None:
            told.append(("what is to be made", work.models))
        return cls(settings, identities, code, agreed(told), work)

    @property
    def digest(self) -> str:
        """Digest of all that decides the result, or the models that it is about."""
        if self.work is not None:
            return self.work.digest
        decided = json.dumps([self.settings, self.inputs, self.code, _libraries()], sort_keys=True)
        return hashlib.sha256(decided.encode()).hexdigest()[:16]

    @property
    def statement(self) -> str:
        """What decides the result, as JSON: a provenance without where and when it was made."""
        return json.dumps(
            {
                "settings": self.settings,
                "inputs": self.inputs,
                "code": self.code,
                "models": self.models,
                "version": __version__,
                "libraries": _libraries(),
            }
        )

    def provenance(self, device: str = "cpu", seconds: float | None = None) -> str:
        """Return what a result file says of itself, as JSON.

        Args:
            device: name of the device it was computed on.
            seconds: wall time, where it is worth keeping.
        """
        run = {"commit": _commit(), "device": device, "seconds": seconds and round(seconds, 3)}
        return json.dumps(json.loads(self.statement) | run)


def file_digest(path: Path) -> str:
    """Digest the bytes of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def identity(path: Path) -> str:
    """Return what tells the content of an input from any other, whatever its name and its time.

    Of a result it is the digest that it carries, of a file of a converted data set that of the data
    set, of any other file a digest of its bytes.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    return _identity(path, _found(path))


def fingerprint(path: Path) -> str:
    """Return what a companion is known by: its own digest, or that of its bytes.

    Of more than a GiB it is the digest of its size and of 1,024 blocks of 64 KiB from everywhere in
    it, as reading the images of a large data set takes minutes.
    """
    carried = (find_provenance(path) or {}).get("digest")
    size = path.stat().st_size
    if carried or size <= READ_WHOLE:
        return carried or file_digest(path)
    sampled = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in range(BLOCKS):
            file.seek((size - BLOCK) * place // (BLOCKS - 1))
            sampled.update(file.read(BLOCK))
    return sampled.hexdigest()[:16]


def with_companions(provenance: str, companions: Mapping[str, Path]) -> str:
    """Return a provenance that vouches for the other outputs of the job, written already.

    Args:
        provenance: of the account, as JSON.
        companions: where the other outputs are, by their names.
    """
    known = {name: fingerprint(path) for name, path in companions.items()}
    return json.dumps(json.loads(provenance) | {"companions": known})


def _found(path: Path) -> dict[str, Any] | None:
    """Return what an input says of itself; a file of a converted data set lets that speak.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    with _reading(path):
        return find_provenance(_spokesman(path))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the job that makes it again.") from None
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not readable ({reason}); run the workflow again.") from None


def _spokesman(path: Path) -> Path:
    sidecar = path.with_name("dataset.json")
    return sidecar if CONVERTED.fullmatch(path.name) and sidecar.is_file() else path


def _identity(path: Path, provenance: dict[str, Any] | None) -> str:
    spokesman = _spokesman(path)
    with _reading(path):
        if spokesman.name == "dataset.json":
            return _sidecar_identity(spokesman)
        return (provenance or {}).get("digest") or file_digest(path)


def _sidecar_identity(sidecar: Path) -> str:
    told = json.loads(sidecar.read_bytes())
    companions = (told.pop("provenance", None) or {}).get("companions", {})
    told.pop("ffcv", None)  # what wrote the images does not change them
    # Labels, names and pixel digests of all images; how the images are stored follows from these.
    told["companions"] = {name: of for name, of in companions.items() if name in DESCRIBING}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def find_provenance(path: Path) -> dict[str, Any] | None:
    """Return what a result says of itself; None if it says nothing, or is damaged.

    Raises:
        OSError: the file is missing or cannot be opened.
    """
    reader = READERS.get(path.suffix)
    try:
        return reader(path) if reader else None
    except (pa.ArrowInvalid, ValueError, struct.error):
        return None


def read_provenance(path: Path) -> dict[str, Any]:
    """Return what a result says of itself.

    Raises:
        UserError: the file is missing, is damaged, or says nothing.
    """
    with _reading(path):
        provenance = find_provenance(path)
    if provenance is None:
        raise UserError(
            f"{path}: carries no provenance, so it is damaged or was not written by this workflow; "
            f"delete it and run the workflow again."
        )
    return provenance


def _of_parquet(path: Path) -> dict[str, Any] | None:
    told = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
    return json.loads(told) if told else None


def _of_safetensors(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    told = header.get("__metadata__", {}).get(KEY)
    return json.loads(told) if told else None


def _of_svg(path: Path) -> dict[str, Any] | None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - SVG_TAIL))
        tail = file.read()
        if b"<!-- " not in tail:
            file.seek(0)
            tail = file.read()
    found = SVG_COMMENT.search(tail)
    return json.loads(found[1]) if found else None


def _of_json(path: Path) -> dict[str, Any] | None:
    told = json.loads(path.read_bytes())
    return told.get("provenance") if isinstance(told, dict) else None


READERS: dict[str, Callable[[Path], dict[str, Any] | None]] = {
    ".parquet": _of_parquet,
    ".safetensors": _of_safetensors,
    ".svg": _of_svg,
    ".json": _of_json,
}


def sign_svg(path: Path, provenance: str) -> None:
    """Append its provenance to an SVG, as a comment."""
    told = json.loads(provenance) | {"digest": file_digest(path)}
    text = json.dumps(told).replace("--", r"-\u002d")  # two dashes would end the comment
    comment = f"<!-- {KEY} {text} -->\n"
    with path.open("a") as file:
        file.write(comment)


class DigestingFile(io.RawIOBase):
    """A file to write to that digests what is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Digest of what was written so far."""
        return self._hash.hexdigest()[:16]

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()


def agreed(told: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return what several results say of the models behind them, put together.

    Each says it as nested settings, such as `{"source": {"recipe": {"epochs": 4}}}`. What two of
    them say of the same setting must agree; a setting may be missing where it means nothing.

    Args:
        told: for each result, its name and what it says.

    Raises:
        UserError: two do not agree; it names both, the setting and its values.
    """
    together: dict[tuple[str, ...], Any] = {}
    said_by: dict[tuple[str, ...], str] = {}
    for name, models in told:
        for place, value in _leaves(models):
            if place in together and not _same(place, together[place], value):
                raise UserError(
                    f"{said_by[place]} and {name} do not belong together: {'.'.join(place)} is "
                    f"{_shown(together[place])} in the first and {_shown(value)} in the second; "
                    f"run the workflow again, or delete the one that is out of date."
                )
            together.setdefault(place, value)
            said_by.setdefault(place, name)
    return _nested(together)


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Yield a sentence for each setting that is not what it was: what it was and what it is now."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            inside = f"{place}.{key}" if place else str(key)
            yield from differences(before.get(key), now.get(key), inside)
    elif before != now:
        yield f"made with {place} {_shown(before)}; the study says {_shown(now)}"


def same_code(one: str, other: str) -> bool:
    """Tell whether two digests stand for code that computes the same: see `accepted_code`."""
    accepted = accepted_code(os.getenv(ACCEPTED))
    return accepted.get(one, one) == accepted.get(other, other)


@functools.cache
def accepted_code(path: str | None) -> Mapping[str, str]:
    """Return digests of code, each with the digest of later code that a person vouched for.

    scripts/accept_code.py writes them into a file of the study; the environment variable
    `TRANSFER_INFLUENCE_ACCEPTED_CODE` says where it is.
    """
    if path is None or not Path(path).exists():
        return {}
    return json.loads(Path(path).read_text())


def _same(place: tuple[str, ...], one: Any, other: Any) -> bool:
    return same_code(one, other) if place[0] == "code" else one == other


def _leaves(value: dict[str, Any], *place: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _leaves(inner, *place, key)
        else:
            yield (*place, key), inner


def _nested(leaves: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for (*outer, last), value in leaves.items():
        inside = whole
        for key in outer:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return whole


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)


def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
