import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from transfer_influence.claims import Owner
from transfer_influence.errors import UserError
from transfer_influence.files import atomic
from transfer_influence.outcomes import partial
from transfer_influence.outcomes.partial import PartialShard
from transfer_influence.outcomes.tables import write_table

DIGEST = "a" * 16
MADE = json.dumps({"inputs": {}, "models": {}})
OTHER = "b" * 16
DEADLINE = 30  # seconds until a test gives up waiting

# Processes that have nothing of this one, but what takes seconds to import.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload([partial.__name__])


def row(model: int) -> pa.Table:
    return pa.table({"model": pa.array([model], pa.int64())})


def state(model: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), float(model))}


def outputs(folder: Path) -> list[Path]:
    return [folder / "000000-000003.safetensors", folder / "000000-000003.parquet"]


def contents(folder: Path) -> list[bytes]:
    return [output.read_bytes() for output in outputs(folder)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def make(
    folder: Path,
    models: list[int],
    digest: str = DIGEST,
    train: Callable[[int], Any] = lambda model: None,
    written: Callable[[], Any] = lambda: None,
) -> None:
    """What a job does: train the models, and write the outputs."""
    shard = PartialShard(outputs(folder), digest)
    for model in shard.unfinished(models):
        train(model)
        shard.save(model, row(model), state(model))

    def write(weights: Path, table: Path) -> None:
        with atomic(weights) as temporary:
            save_file({str(model): shard.weights(model)["w"] for model in models}, temporary)
        write_table(pa.concat_tables(shard.row(model) for model in models), table, MADE)
        written()

    shard.finish(write, MADE)


def never(model: int) -> None:
    raise AssertionError(f"model {model} is trained again")


# Jobs that work on one shard at a time


def work(folder: Path, name: str, models: list[int], seconds: float) -> None:
    """A job in a process of its own that tells a diary what it does."""
    partial.POLL = 0.05

    def tell(*words: Any) -> None:
        with (folder / "diary").open("a") as diary:
            diary.write(" ".join(map(str, (name, *words))) + "\n")

    def train(model: int) -> None:
        tell("trains", model)
        while (folder / f"{name} waits at {model}").exists():
            time.sleep(0.01)
        time.sleep(seconds)

    make(folder, models, train=train, written=lambda: tell("writes"))
    tell("finds", *(data.hex() for data in contents(folder)))


class Jobs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[ForkServerProcess] = []

    def start(
        self, name: str, models: list[int], seconds: float = 0.0, wait_at: int | None = None
    ) -> ForkServerProcess:
        if wait_at is not None:
            self._gate(name, wait_at).touch()
        job = processes.Process(target=work, args=(self._folder, name, models, seconds))
        job.start()
        self._started.append(job)
        return job

    def go_on(self, name: str, model: int) -> None:
        self._gate(name, model).unlink()

    def _gate(self, name: str, model: int) -> Path:
        return self._folder / f"{name} waits at {model}"

    def diary(self) -> list[str]:
        path = self._folder / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def trained(self) -> list[str]:
        return sorted(line for line in self.diary() if "trains" in line)

    def wait_for(self, line: str) -> None:
        started = time.monotonic()
        while line not in self.diary():
            assert time.monotonic() - started < DEADLINE, f"no {line!r} in {self.diary()}"
            time.sleep(0.01)

    def all_end(self) -> None:
        for job in self._started:
            job.join(DEADLINE)
            assert job.exitcode is not None, f"waits for ever: {self.diary()}"

    def kill(self) -> None:
        for job in self._started:
            job.kill()
            job.join()


@pytest.fixture
def jobs(tmp_path) -> Iterator[Jobs]:
    started = Jobs(tmp_path)
    yield started
    started.kill()


def test_two_jobs_share_a_shard_and_train_every_model_once(jobs, tmp_path):
    first, second = [jobs.start(name, list(range(8)), 0.05) for name in ("a", "b")]
    jobs.all_end()
    assert (first.exitcode, second.exitcode) == (0, 0)
    trained = jobs.trained()
    assert sorted(line.split()[-1] for line in trained) == list("01234567")
    assert {line.split()[0] for line in trained} == {"a", "b"}, "one did all the work"
    assert len([line for line in jobs.diary() if "writes" in line]) == 1
    found = [line.split()[2:] for line in jobs.diary() if "finds" in line]
    assert found == [[data.hex() for data in contents(tmp_path)]] * 2
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == list(range(8))
    assert not (tmp_path / ".partial").exists()


def test_a_job_that_waits_for_another_s_last_model_ends_with_it(jobs, tmp_path):
    slow = jobs.start("slow", [0, 1, 2], wait_at=0)
    jobs.wait_for("slow trains 0")
    quick = jobs.start("quick", [0, 1, 2])
    jobs.wait_for("quick trains 2")
    time.sleep(0.3)
    assert quick.is_alive(), "left before the shard was whole"
    assert not list(tmp_path.glob("*.parquet"))
    jobs.go_on("slow", 0)
    jobs.all_end()
    assert (slow.exitcode, quick.exitcode) == (0, 0)
    assert jobs.trained() == ["quick trains 1", "quick trains 2", "slow trains 0"]
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1, 2]


def test_a_job_that_waits_says_for_whom_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(partial, "POLL", 0.02)
    other = PartialShard(outputs(tmp_path), DIGEST)
    other.save(1, row(1), state(1))
    claim = tmp_path / ".partial" / f"000000-000003-{DIGEST}" / "0.claim-000000"
    claim.write_text(json.dumps(asdict(Owner.this())))

    def finish() -> None:
        other.save(0, row(0), state(0))
        claim.unlink()

    timer = threading.Timer(0.3, finish)
    timer.start()
    with caplog.at_level("INFO"):
        make(tmp_path, [0, 1], train=never)
    timer.join()
    told = [record.getMessage() for record in caplog.records]
    assert [line for line in told if "waiting" in line] == [f"model 0: waiting for {Owner.this()}"]
    assert "1 of 2 models were finished before" in told


def test_a_job_takes_over_the_model_of_one_that_is_killed(jobs, tmp_path):
    killed = jobs.start("killed", [0, 1, 2], wait_at=1)
    jobs.wait_for("killed trains 1")
    heir = jobs.start("heir", [0, 1, 2])
    jobs.wait_for("heir trains 2")
    assert "heir trains 1" not in jobs.diary()
    killed.kill()
    jobs.wait_for("heir trains 1")
    jobs.all_end()
    assert heir.exitcode == 0
    assert jobs.trained() == [
        "heir trains 1",
        "heir trains 2",
        "killed trains 0",
        "killed trains 1",
    ]
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1, 2]
    assert not (tmp_path / ".partial").exists()


# One job after the other


def test_a_finished_model_is_found_again(tmp_path):
    PartialShard(outputs(tmp_path), "aa").save(2, row(2), state(2))
    found = PartialShard(outputs(tmp_path), "aa")
    assert [found.has(model) for model in range(4)] == [False, False, True, False]
    assert found.row(2).equals(row(2))
    assert found.weights(2)["w"].tolist() == [2, 2, 2]


def test_a_model_may_be_without_weights(tmp_path):
    shard = PartialShard(outputs(tmp_path), "aa")
    shard.save(2, row(2))
    assert shard.has(2)
    assert shard.weights(2) == {}


@pytest.mark.parametrize(
    ("output", "digest"), [("000000-000003.parquet", "bb"), ("000004-000007.parquet", "aa")]
)
def test_other_settings_and_other_shards_find_nothing(tmp_path, output, digest):
    PartialShard([tmp_path / "000000-000003.parquet"], "aa").save(2, row(2))
    assert not PartialShard([tmp_path / output], digest).has(2)


@pytest.mark.parametrize(("module", "writer"), [(pq, "write_table"), (partial, "save_file")])
def test_a_model_of_which_only_a_part_was_kept_is_not_finished(
    tmp_path, monkeypatch, module, writer
):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    shard = PartialShard([tmp_path / "s.parquet"], "aa")
    monkeypatch.setattr(module, writer, killed)
    with pytest.raises(KeyboardInterrupt):
        shard.save(2, row(2), state(2))
    assert not shard.has(2)
    assert not list(tmp_path.rglob("*2.parquet"))


def test_a_failure_is_found_again_and_is_no_finished_model(tmp_path):
    shard = PartialShard(outputs(tmp_path), "aa")
    assert shard.failure(2) is None
    shard.save_failure(2, "the loss is „nan“")
    found = PartialShard(outputs(tmp_path), "aa")
    assert found.failure(2) == "the loss is „nan“"
    assert found.failure(1) is None
    assert not found.has(2)


def test_a_model_that_another_finished_since_is_not_trained_again(tmp_path):
    other = PartialShard(outputs(tmp_path), DIGEST)
    trained = []

    def train(model: int) -> None:
        trained.append(model)
        if model == 0:
            other.save(1, row(1), state(1))

    make(tmp_path, [0, 1, 2], train=train)
    assert trained == [0, 2]


def test_a_model_is_finished_even_while_another_job_ends_the_shard(tmp_path, monkeypatch):
    shard = PartialShard(outputs(tmp_path), DIGEST)
    shard.save(0, row(0), state(0))
    look = shard._is_whole

    def look_and_lag() -> bool:
        found = look()
        make(tmp_path, [0], train=never)
        return found

    monkeypatch.setattr(shard, "_is_whole", look_and_lag)
    assert shard.has(0)


def test_outputs_that_another_job_writes_meanwhile_are_not_written_again(tmp_path, monkeypatch):
    shard = PartialShard(outputs(tmp_path), DIGEST)
    shard.save(0, row(0), state(0))
    look = shard._is_whole

    def look_and_lag() -> bool:
        found = look()
        make(tmp_path, [0], train=never)
        return found

    monkeypatch.setattr(partial, "POLL", 0.02)
    monkeypatch.setattr(shard, "_is_whole", look_and_lag)
    shard.finish(lambda *_: never(-1), MADE)
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0]


def test_a_job_that_fails_in_a_model_gives_it_back(tmp_path):
    def fail(model: int) -> None:
        assert (tmp_path / ".partial" / f"000000-000003-{DIGEST}" / "0.claim-000000").exists()
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        make(tmp_path, [0, 1], train=fail)
    assert names(tmp_path) == []


def test_a_whole_shard_has_its_outputs_and_a_record_of_them(tmp_path):
    make(tmp_path, [0, 1])
    assert names(tmp_path) == [
        f".000000-000003.{DIGEST}.json",
        f".000000-000003.{DIGEST}.parquet",
        f".000000-000003.{DIGEST}.safetensors",
        "000000-000003.parquet",
        "000000-000003.safetensors",
    ]
    for output in outputs(tmp_path):
        assert output.stat().st_nlink == 2, "takes its space twice"
    weights = load_file(outputs(tmp_path)[0])
    assert {name: tensor.tolist() for name, tensor in weights.items()} == {
        "0": [0, 0, 0],
        "1": [1, 1, 1],
    }


@pytest.mark.parametrize("deleted", [[0], [1], [0, 1]])
def test_deleted_outputs_are_put_back_without_training(tmp_path, deleted):
    make(tmp_path, [0, 1])
    before = contents(tmp_path)
    for output in outputs(tmp_path):
        os.utime(output, (1, 1))
    for index in deleted:
        outputs(tmp_path)[index].unlink()
    inputs_changed = time.time() - 60
    make(tmp_path, [0, 1], train=never, written=lambda: never(-1))
    assert contents(tmp_path) == before
    for index in deleted:
        assert outputs(tmp_path)[index].stat().st_mtime > inputs_changed
    assert not (tmp_path / ".partial").exists()


def test_outputs_in_place_are_not_touched(tmp_path):
    make(tmp_path, [0, 1])
    for output in outputs(tmp_path):
        os.utime(output, (1, 1))
    make(tmp_path, [0, 1], train=never)
    assert [output.stat().st_mtime for output in outputs(tmp_path)] == [1, 1]


def test_outputs_may_be_deleted_while_they_are_written(tmp_path):
    def delete() -> None:
        for output in outputs(tmp_path):
            output.unlink(missing_ok=True)

    make(tmp_path, [0, 1], written=delete)
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1]
    assert outputs(tmp_path)[0].exists()


def test_outputs_that_a_job_of_other_settings_wrote_meanwhile_are_refused(tmp_path):
    def write_others() -> None:
        for output in outputs(tmp_path):
            output.write_bytes(b"others")

    with pytest.raises(UserError, match="another job wrote it meanwhile, with other settings;"):
        make(tmp_path, [0, 1], written=write_others)
    for output in outputs(tmp_path):
        assert output.read_bytes() == b"others"
        output.unlink()  # as Snakemake does
    make(tmp_path, [0, 1], train=never)
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("suffix", ["parquet", "safetensors", "json"])
def test_a_damaged_shard_is_noticed_and_made_anew(tmp_path, caplog, suffix, damage):
    make(tmp_path, [0, 1])
    before = contents(tmp_path)
    damage(tmp_path / f".000000-000003.{DIGEST}.{suffix}")
    trained: list[int] = []
    make(tmp_path, [0, 1], train=trained.append)
    assert trained == [0, 1]
    assert contents(tmp_path) == before
    if (suffix, damage) != ("json", Path.unlink):
        assert "000000-000003.parquet: damaged since it was written; made anew" in caplog.text
    make(tmp_path, [0, 1], train=never)


class Killed(BaseException):
    pass


def test_models_are_kept_until_the_shard_is_recorded_as_whole(tmp_path, monkeypatch):
    def killed(_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PartialShard, "_save_record", killed)
        with pytest.raises(Killed):
            make(tmp_path, [0, 1])
    assert not any(output.exists() for output in outputs(tmp_path)), "nobody vouches for them yet"
    make(tmp_path, [0, 1], train=never)
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1]


def test_a_shard_is_whole_though_its_job_was_killed_before_it_put_the_outputs_in_place(
    tmp_path, monkeypatch
):
    def killed(_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PartialShard, "_put_in_place", killed)
        with pytest.raises(Killed):
            make(tmp_path, [0, 1])
    make(tmp_path, [0, 1], train=never, written=lambda: never(-1))
    assert pq.read_table(outputs(tmp_path)[1])["model"].to_pylist() == [0, 1]
    assert not (tmp_path / ".partial").exists()


def test_a_file_system_without_hard_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    make(tmp_path, [0, 1])
    before = contents(tmp_path)
    for output in outputs(tmp_path):
        assert output.stat().st_nlink == 1
        os.utime(output, (1, 1))
    outputs(tmp_path)[0].unlink()
    make(tmp_path, [0, 1], train=never)
    assert contents(tmp_path) == before
    assert outputs(tmp_path)[0].stat().st_mtime > 1
    assert outputs(tmp_path)[1].stat().st_mtime == 1


# What is left behind


def test_a_whole_shard_leaves_nothing_of_itself_and_all_of_others(tmp_path):
    kept = [("none-fixed-top-3", DIGEST), ("random-3", DIGEST), ("non", DIGEST)]
    for name, digest in [("none", DIGEST), ("none", OTHER), *kept]:
        PartialShard([tmp_path / f"{name}.parquet"], digest).save(0, row(0))
    for name in ("none", "none-fixed-top-3"):
        (tmp_path / f".{name}.{OTHER}.json").touch()
        (tmp_path / f".{name}.{OTHER}.parquet").touch()
        (tmp_path / f"..{name}.{DIGEST}.01234567.parquet").touch()  # half written
    PartialShard([tmp_path / "none.parquet"], DIGEST).finish(
        lambda table: write_table(row(0), table, MADE), MADE
    )
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        f"..none-fixed-top-3.{DIGEST}.01234567.parquet",
        f".none-fixed-top-3.{OTHER}.json",
        f".none-fixed-top-3.{OTHER}.parquet",
        f".none.{DIGEST}.json",
        f".none.{DIGEST}.parquet",
        ".partial",
        "none.parquet",
    ]
    assert not list(tmp_path.glob(".partial/none-[ab]*"))
    for name, digest in kept:
        assert PartialShard([tmp_path / f"{name}.parquet"], digest).has(0), name


@pytest.mark.parametrize("alive", [True, False])
def test_models_of_other_settings_go_unless_a_job_is_at_work_on_them(tmp_path, alive):
    other = PartialShard(outputs(tmp_path), OTHER)
    other.save(0, row(0))
    owner = Owner.this() if alive else replace(Owner.this(), started=1)
    claim = tmp_path / ".partial" / f"000000-000003-{OTHER}" / "1.claim-000000"
    claim.write_text(json.dumps(asdict(owner)))
    make(tmp_path, [0, 1])
    assert other.has(0) == alive
    assert claim.exists() == alive
