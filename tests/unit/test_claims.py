import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.conftest import CHECKOUT

from transfer_influence.claims import Claims, Owner
from transfer_influence.errors import UserError

ROUNDS = 150
DEADLINE = 20  # seconds until a test gives up waiting

# Claims what it is told to at the time it is told, says whether it got it, and holds it for a line.
CLAIMER = """
import sys, time
from pathlib import Path
from transfer_influence.claims import Claims

claims = Claims(Path(sys.argv[1]))
for line in iter(sys.stdin.readline, ""):
    name, start = line.split()
    while time.time() < float(start):
        pass
    with claims.claimed(name) as ours:
        print(int(ours), flush=True)
        sys.stdin.readline()
    print("given back", flush=True)
"""


class Claimer:
    """Another process that claims things."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(folder)],
            env={"PYTHONPATH": str(CHECKOUT / "workflow"), "PATH": os.defpath},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.number = self._process.pid

    def ask(self, name: str, start: float = 0.0) -> None:
        self._process.stdin.write(f"{name} {start!r}\n")

    def answer(self) -> bool:
        return bool(int(self._process.stdout.readline()))

    def give_back(self) -> None:
        self._process.stdin.write("\n")
        assert self._process.stdout.readline() == "given back\n"

    def kill(self, reap: bool = True) -> None:
        os.kill(self.number, signal.SIGKILL)
        if reap:
            self._process.wait()
        else:
            os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOWAIT)  # ended, and a zombie

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def claimers(tmp_path) -> Iterator[list[Claimer]]:
    started = [Claimer(tmp_path), Claimer(tmp_path)]
    yield started
    for claimer in started:
        claimer.end()


def write_claim(folder: Path, owner: Owner, name: str = "0", generation: int = 0) -> Path:
    path = folder / f"{name}.claim-{generation:06d}"
    path.write_text(json.dumps(asdict(owner)))
    return path


def dead() -> Owner:
    """A process of this machine that has ended: this one, had it started at another time."""
    return replace(Owner.this(), started=1)


def elsewhere(**changes: str) -> Owner:
    return replace(Owner.this(), machine="another", **changes)


def takes(claims: Claims, name: str = "0") -> bool:
    with claims.claimed(name) as ours:
        return ours


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_of_two_processes_that_race_for_a_name_exactly_one_wins(claimers, tmp_path):
    wins = []
    for number in range(ROUNDS):
        start = time.time() + 0.002
        for claimer in claimers:
            claimer.ask(str(number), start)
        wins.append([claimer.answer() for claimer in claimers])
        for claimer in claimers:
            claimer.give_back()
    assert [sum(won) for won in wins] == [1] * ROUNDS
    assert names(tmp_path) == []


def test_of_two_that_race_to_succeed_a_dead_process_exactly_one_wins(claimers, tmp_path):
    wins = []
    for number in range(ROUNDS):
        write_claim(tmp_path, dead(), str(number))
        start = time.time() + 0.002
        for claimer in claimers:
            claimer.ask(str(number), start)
        wins.append([claimer.answer() for claimer in claimers])
        for claimer in claimers:
            claimer.give_back()
    assert [sum(won) for won in wins] == [1] * ROUNDS


def test_a_claim_is_another_s_until_it_is_given_back(claimers, tmp_path):
    claims = Claims(tmp_path)
    claimers[0].ask("3")
    assert claimers[0].answer()
    claimers[1].ask("33")
    assert claimers[1].answer()
    assert not takes(claims, "3")
    assert takes(claims, "4")
    claimers[0].give_back()
    assert takes(claims, "3")
    assert names(tmp_path) == ["33.claim-000000"]
    claimers[1].give_back()
    assert names(tmp_path) == []


@pytest.mark.parametrize("reap", [True, False], ids=["gone", "zombie"])
def test_a_process_of_this_machine_that_is_killed_is_succeeded_at_once(claimers, tmp_path, reap):
    claims = Claims(tmp_path)
    claimers[0].ask("0")
    assert claimers[0].answer()
    claimers[0].kill(reap)
    with claims.claimed("0") as ours:
        assert ours
        assert names(tmp_path) == ["0.claim-000000", "0.claim-000001"]
        assert claims.holder("0") == Owner.this()
        claimers[1].ask("0")
        assert not claimers[1].answer(), "the dead owner was succeeded twice"
        claimers[1].give_back()
    assert names(tmp_path) == ["0.claim-000000"]
    claimers[1].ask("0")
    assert claimers[1].answer()


def test_a_process_number_that_came_again_is_not_the_owner(tmp_path):
    write_claim(tmp_path, replace(Owner.this(), started=Owner.this().started + 1))
    assert takes(Claims(tmp_path))


def test_the_tenth_successor_is_succeeded_too(tmp_path):
    for generation in (2, 9, 10):
        write_claim(tmp_path, dead(), generation=generation)
    with Claims(tmp_path).claimed("0") as ours:
        assert ours
        assert names(tmp_path)[-1] == "0.claim-000011"


def test_an_owner_elsewhere_holds_its_claim_while_its_heart_beats(tmp_path):
    path = write_claim(tmp_path, elsewhere())
    claims = Claims(tmp_path, patience=0.2)
    beats = [0, 2_000_000_000, 1, 2**62, *range(10, 16)]  # clocks of other machines may be wrong
    for beat in beats:
        os.utime(path, ns=(beat, beat))
        assert not takes(claims)
        time.sleep(0.05)
    beaten = time.monotonic()
    while not takes(claims):
        assert time.monotonic() - beaten < DEADLINE
        time.sleep(0.01)
    # The last heartbeat was seen 0.05 s before.
    assert time.monotonic() - beaten > 0.2 - 0.1


def test_an_owner_elsewhere_is_not_succeeded_before_patience_ends(tmp_path):
    write_claim(tmp_path, elsewhere())
    claims = Claims(tmp_path, patience=1000)
    for _ in range(5):
        assert not takes(claims)
        time.sleep(0.02)


def test_a_claim_that_was_killed_before_it_was_written_is_succeeded_after_patience(tmp_path):
    (tmp_path / "0.claim-000000").touch()
    claims = Claims(tmp_path, patience=0.2)
    started = time.monotonic()
    assert not takes(claims)
    assert claims.holder("0") is None
    assert claims.is_held("0")
    while not takes(claims):
        assert time.monotonic() - started < DEADLINE
        time.sleep(0.01)
    assert time.monotonic() - started > 0.2


def test_a_job_that_slurm_started_on_another_machine_waits_for_its_first_life(
    tmp_path, monkeypatch
):
    # A node that SLURM has lost may train on.
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    write_claim(tmp_path, elsewhere(job="17"))
    assert not takes(Claims(tmp_path))


def test_time_in_which_nobody_looked_does_not_count(tmp_path):
    write_claim(tmp_path, elsewhere())
    claims = Claims(tmp_path, heartbeat=0.05, patience=0.2)
    assert not takes(claims)
    time.sleep(0.4)  # as if stopped, or without its file server
    assert not takes(claims)


def test_processes_of_one_slurm_job_on_one_machine_keep_their_claims(
    claimers, tmp_path, monkeypatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    claimers[0].ask("0")
    assert claimers[0].answer()
    path = tmp_path / "0.claim-000000"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"job": "17"}))
    assert not takes(Claims(tmp_path))


def test_an_owner_s_heart_beats(tmp_path):
    with Claims(tmp_path, heartbeat=0.02).claimed("0"):
        path = tmp_path / "0.claim-000000"
        for _ in range(2):
            os.utime(path, (0, 0))
            started = time.monotonic()
            while path.stat().st_mtime == 0:
                assert time.monotonic() - started < DEADLINE
                time.sleep(0.005)
        assert time.time() - path.stat().st_mtime < DEADLINE


def test_a_heart_stops_with_its_claim(tmp_path):
    before = threading.active_count()
    with Claims(tmp_path, heartbeat=0.02).claimed("0"):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_claim_is_given_back_when_its_work_fails(tmp_path, error):
    with pytest.raises(error), Claims(tmp_path).claimed("0"):
        raise error
    assert names(tmp_path) == []


def test_who_holds_a_claim_can_be_asked(claimers, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    claims = Claims(tmp_path)
    assert claims.holder("0") is None
    assert not claims.is_held("0")
    assert not claims.any_held()
    claimers[0].ask("0")
    assert claimers[0].answer()
    owner = claims.holder("0")
    assert owner == replace(Owner.this(), process=claimers[0].number, started=owner.started)
    assert str(owner) == f"process {claimers[0].number} on {Owner.this().host}"
    assert str(replace(owner, job="17")) == f"{owner}, SLURM job 17"
    assert claims.is_held("0")
    assert not claims.is_held("1")
    assert claims.any_held()
    claimers[0].kill()
    assert claims.holder("0") == owner, "who died at it is worth knowing"
    assert not claims.is_held("0")
    assert not claims.any_held()
    write_claim(tmp_path, elsewhere(), "1")
    assert claims.is_held("1")
    assert claims.any_held()


def test_a_folder_that_is_not_there_holds_no_claims(tmp_path):
    claims = Claims(tmp_path / "deep" / "er")
    assert not claims.any_held()
    assert not claims.is_held("0")
    assert takes(claims)


def test_a_folder_may_be_removed_by_another_at_any_moment(tmp_path):
    folder, over = tmp_path / "work", threading.Event()

    def remove() -> None:
        while not over.is_set():
            shutil.rmtree(folder, ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        found = [takes(Claims(folder)) for _ in range(300)]
    finally:
        over.set()
        remover.join()
    assert any(found)


def test_a_claim_on_a_full_disk_is_one_sentence_and_leaves_nothing(tiny_disk):
    with contextlib.suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    with pytest.raises(UserError, match=r"0.claim-000000: no space left on device; make room"):
        takes(Claims(tiny_disk))
    assert names(tiny_disk) == ["filler"]


def test_of_the_claims_of_the_dead_the_last_one_stays(tmp_path):
    for generation in range(4):
        owner = asdict(replace(Owner.this(), started=1))
        (tmp_path / f"work.claim-{generation:06d}").write_text(json.dumps(owner))
    (tmp_path / "other.claim-000000").touch()
    with Claims(tmp_path).claimed("work") as ours:
        assert ours
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"work.claim-000003", "other.claim-000000"}


def test_who_looked_long_ago_claims_nothing(tmp_path, monkeypatch):
    """Others have succeeded the dead since, and the claim that would be next is gone again."""
    dead, alive = tmp_path / "work.claim-000001", tmp_path / "work.claim-000005"
    dead.write_text(json.dumps(asdict(replace(Owner.this(), started=1))))
    alive.write_text(json.dumps(asdict(Owner.this())))
    claims = Claims(tmp_path)
    looks = iter([(1, dead)])
    newest = claims._newest
    monkeypatch.setattr(claims, "_newest", lambda name: next(looks, None) or newest(name))
    with claims.claimed("work") as ours:
        assert not ours
    assert set(tmp_path.iterdir()) == {dead, alive}
