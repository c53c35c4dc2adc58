"""Claims on work, so that no two processes, wherever they run, do the same work at once.

A claim is a small file beside the work. It is made with O_EXCL, which local and network file
systems (NFS from version 3 on) grant to one process only, and its owner touches it every
`HEARTBEAT` seconds. A claim whose owner is dead is not taken away but succeeded: the next claim on
the same work has the next generation in its name and is again made with O_EXCL. So of all that see
the dead owner one succeeds it, without a file that could be removed or renamed under another's
feet. Of dead claims the last one stays, so that no generation comes twice.

An owner on this machine is dead when its process is. For an owner elsewhere, clocks are not
compared: it is dead when its heartbeat has not moved for `PATIENCE` seconds in which we watched it.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from transfer_influence.files import LITTER_AGE, disk_full_named

HEARTBEAT = 15.0  # seconds
PATIENCE = 150.0  # seconds; network file systems show a touch of a file up to 60 s late


@dataclass(frozen=True)
class Owner:
    """A process.

    Attributes:
        host: name of its machine, for people.
        machine: what tells machines, their boots and their process namespaces apart.
        process: its number.
        started: its start in clock ticks after boot, as process numbers come again.
        job: its SLURM job, if it is in one.
    """

    host: str
    machine: str
    process: int
    started: int
    job: str | None

    @classmethod
    def this(cls) -> "Owner":
        """Return this process."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(
            socket.gethostname(),
            f"{boot} {os.readlink('/proc/self/ns/pid')}",
            os.getpid(),
            _start(os.getpid()) or 0,
            os.getenv("SLURM_JOB_ID"),
        )

    def __str__(self) -> str:
        job = f", SLURM job {self.job}" if self.job else ""
        return f"process {self.process} on {self.host}{job}"

    def is_dead(self) -> bool | None:
        """Tell whether the process has ended; None when that cannot be seen from here."""
        this = Owner.this()
        if self.machine == this.machine:
            return _start(self.process) != self.started
        return None


def _start(process: int) -> int | None:
    """Return when a process started, in clock ticks after boot; None if it has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold anything; state is the field after it, start the 20th.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class _Seen:
    """What was seen of another's claim: its heartbeat, for how long unmoved, and when last."""

    heartbeat: int  # ns
    still: float  # s
    looked: float  # s


class Claims:
    """Claims on pieces of work that have names, as files `{name}.claim-{generation}`.

    Args:
        folder: where the files are.
        heartbeat: seconds between two touches of a claim of ours.
        patience: seconds without a heartbeat after which an owner elsewhere is taken for dead.
    """

    def __init__(
        self, folder: Path, heartbeat: float = HEARTBEAT, patience: float = PATIENCE
    ) -> None:
        self._folder = folder
        self._heartbeat = heartbeat
        self._patience = patience
        self._seen: dict[Path, _Seen] = {}

    @contextlib.contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Claim some work for the time of the block; yield False if it is another's.

        Raises:
            UserError: the disk is full, or the user's quota.
        """
        path = self._take(name)
        if path is None:
            yield False
            return
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(path, stop), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            stop.set()
            beat.join()
            self._remove_oldest(name, path)
            path.unlink(missing_ok=True)

    def holder(self, name: str) -> Owner | None:
        """Return who holds a claim, dead or alive; None if nobody does."""
        newest = self._newest(name)
        return _read(newest[1]) if newest else None

    def is_held(self, name: str) -> bool:
        """Tell whether somebody holds a claim and is not known to be dead."""
        newest = self._newest(name)
        return newest is not None and not self._is_abandoned(newest[1])

    def shows_life(self, name: str) -> bool:
        """Wait until it is sure whether the holder of a claim is alive, at most `patience`."""
        first = True
        while newest := self._newest(name):
            path = newest[1]
            if self._is_abandoned(path):
                return False
            owner = _read(path)
            if owner is not None and owner.is_dead() is False:
                return True
            if not first and self._seen[path].still == 0.0:
                return True
            first = False
            time.sleep(min(1.0, self._heartbeat))
        return False

    def any_held(self) -> bool:
        """Tell whether somebody seems to be at work in the folder.

        Nobody waits for this answer: an owner elsewhere counts for a day after its last heartbeat.
        """
        return any(
            not self._is_abandoned(path) and time.time() - path.stat().st_mtime < LITTER_AGE
            for _, path in self._claims_on("*")
        )

    def _take(self, name: str) -> Path | None:
        newest = self._newest(name)
        if newest and not self._is_abandoned(newest[1]):
            return None
        path = self._folder / f"{name}.claim-{newest[0] + 1 if newest else 0:06d}"
        with disk_full_named(path):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                file = path.open("x")
            except FileExistsError:
                return None  # another was faster
            except FileNotFoundError:
                return None  # another has just removed the folder: all its work is done
            try:
                with file:
                    json.dump(asdict(Owner.this()), file)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        if self._newest(name) != (_generation(path), path):
            path.unlink(missing_ok=True)  # what we looked at was long out of date
            return None
        return path

    def _remove_oldest(self, name: str, path: Path) -> None:
        """Remove the claims of the dead before a claim of ours, but for the last of them."""
        for generation, other in self._claims_on(name):
            if generation < _generation(path) - 1:
                other.unlink(missing_ok=True)

    def _newest(self, name: str) -> tuple[int, Path] | None:
        return max(self._claims_on(name), default=None)

    def _claims_on(self, name: str) -> list[tuple[int, Path]]:
        """Return the claims on some work, of all generations; none if the folder is gone."""
        try:
            return [(_generation(path), path) for path in self._folder.glob(f"{name}.claim-*")]
        except FileNotFoundError:  # removed while it was being listed
            return []

    def _is_abandoned(self, path: Path) -> bool:
        owner = _read(path)
        dead = owner.is_dead() if owner else None
        if dead is not None:
            return dead
        try:
            heartbeat = path.stat().st_mtime_ns
        except OSError:
            heartbeat = 0  # given back just now, or out of reach; the next look sees more
        now = time.monotonic()
        seen = self._seen.get(path)
        still = 0.0
        if seen is not None and seen.heartbeat == heartbeat:
            # Time in which we did not look, as we were stopped or the file server was away, does
            # not count: the owner may have fared alike.
            still = seen.still + min(now - seen.looked, 2 * self._heartbeat)
        self._seen[path] = _Seen(heartbeat, still, now)
        return still > self._patience

    def _beat(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self._heartbeat):
            with contextlib.suppress(OSError):  # a file server that is away comes back
                os.utime(path)


def _generation(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _read(path: Path) -> Owner | None:
    """Return the owner in a claim; None when it is not, or not yet, written whole."""
    try:
        return Owner(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
