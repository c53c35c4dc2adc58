import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from tests.conftest import CHECKOUT, CLASSES, recipe_values

from transfer_influence import job
from transfer_influence.config.stages import SourceStage
from transfer_influence.job import JobOptions, reserved, visible_gpus
from transfer_influence.provenance import Origin, identity
from transfer_influence.subsets import source_models
from transfer_influence.training.sources import train_sources

DEADLINE = 30  # seconds until a test gives up waiting

# Tells a diary what it was given, and stays until the file "stay" is gone.
PROGRAM = """
import argparse, os, signal, sys, time
from pathlib import Path
from transfer_influence import job
from transfer_influence.errors import UserError
from transfer_influence.progress import command_line

job.POLL = 0.05
job.PATIENCE = 1.0
parser = argparse.ArgumentParser()
parser.add_argument("--folder", type=Path)
parser.add_argument("--copies", choices=["fail", "deaf"])
parser.add_argument("--first", choices=["fails"])
job.JobOptions.add_to(parser)
arguments = parser.parse_args()
is_copy = "--gpus 0 --processes 1" in " ".join(sys.argv)
gpu = os.getenv("CUDA_VISIBLE_DEVICES", "none") if is_copy else None

def tell(*words):
    with (arguments.folder / "diary").open("a") as diary:
        print(*words, file=diary)

with command_line("program"), job.all_devices(job.JobOptions.of(arguments)) as workers:
    gpu = os.getenv("CUDA_VISIBLE_DEVICES", "none")
    busy = arguments.folder / f"busy {gpu} {os.getenv('SLURM_JOB_ID')}"
    if is_copy and arguments.copies == "fail":
        raise UserError("a copy fails")
    if is_copy and arguments.copies == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell("copy" if is_copy else "first", os.getpid(), gpu, workers, arguments.processes)
    try:
        while (arguments.folder / "stay").exists() or (is_copy and arguments.copies == "deaf"):
            time.sleep(0.01)
        if arguments.first == "fails" and not is_copy:
            raise UserError("the first fails")
    finally:
        tell("left", os.getpid(), gpu)
"""


class Program:
    def __init__(self, folder: Path, *options: str, **environment: str) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "program.py"), "--folder", str(folder), *options],
            env={
                **kept,
                "PYTHONPATH": str(CHECKOUT / "workflow"),
                "TMPDIR": str(folder / "tmp"),
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for it; return its exit status and its log."""
        log = self.process.communicate(timeout=DEADLINE)[1]
        return self.process.returncode, log


class Programs:
    """Programs that run in a folder, and what they tell of themselves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Program] = []
        (folder / "program.py").write_text(PROGRAM)
        (folder / "tmp").mkdir()

    def start(self, *options: str, **environment: str) -> Program:
        self._started.append(Program(self.folder, *options, **environment))
        return self._started[-1]

    def stay(self, stay: bool = True) -> None:
        (self.folder / "stay").touch() if stay else (self.folder / "stay").unlink()

    def diary(self, word: str = "") -> list[list[str]]:
        path = self.folder / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split() for line in lines if line.startswith(word)]

    def wait_for(self, lines: int, word: str = "") -> list[list[str]]:
        started = time.monotonic()
        while len(self.diary(word)) < lines:
            assert time.monotonic() - started < DEADLINE, self.diary()
            time.sleep(0.01)
        return self.diary(word)

    def locks(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "tmp").iterdir())

    def kill(self) -> None:
        for program in self._started:
            program.process.kill()
            program.process.communicate()


@pytest.fixture
def programs(tmp_path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    yield started
    (tmp_path / "stay").unlink(missing_ok=True)
    started.kill()


def runs(process: str) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def wait_until_ended(*processes: str) -> None:
    started = time.monotonic()
    while any(map(runs, processes)):
        assert time.monotonic() - started < DEADLINE, "still runs"
        time.sleep(0.01)


# The processes of a job


@pytest.mark.parametrize(
    ("visible", "options", "gpus", "workers"),
    [
        ("0,1", ["--gpus", "2", "--workers", "8"], ["0", "1"], "4"),
        ("0,1", ["--gpus", "2", "--workers", "1"], ["0", "1"], "1"),
        ("3,5", ["--gpus", "2", "--processes", "2", "--workers", "9"], ["3", "3", "5", "5"], "2"),
        ("0,1", ["--gpus", "1"], ["0"], "1"),
        ("0,1", ["--gpus", "0"], ["0", "1"], "1"),
        ("1", ["--gpus", "4"], ["1"], "1"),
        ("", ["--gpus", "1", "--processes", "3", "--workers", "6"], [""] * 3, "2"),
        ("0", [], ["0"], "1"),
    ],
)
def test_a_job_has_a_process_for_each_of_its_gpus(programs, visible, options, gpus, workers):
    programs.stay()
    program = programs.start(*options, CUDA_VISIBLE_DEVICES=visible)
    programs.wait_for(len(gpus))
    programs.stay(False)
    status, log = program.end()
    assert status == 0, log
    told = [line for line in programs.diary() if line[0] != "left"]
    assert sorted(line[2] if visible else "" for line in told) == gpus
    assert {line[-2] for line in told} == {workers}
    assert [line[0] for line in told].count("first") == 1
    assert len(programs.diary("left")) == len(gpus)
    assert programs.locks() == []


def test_a_job_ends_only_with_its_copies(programs):
    programs.stay()
    program = programs.start("--processes", "3", CUDA_VISIBLE_DEVICES="")
    programs.wait_for(3)
    programs.stay(False)
    program.end()
    assert len(programs.diary("left")) == 3


def test_a_copy_that_fails_fails_the_job(programs):
    program = programs.start("--processes", "3", "--copies", "fail", CUDA_VISIBLE_DEVICES="")
    status, log = program.end()
    assert status == 1
    assert log.count("ERROR a copy fails") == 2
    assert log.endswith("ERROR 2 of 2 further processes failed; see above.\n")


@pytest.mark.parametrize("copies", [[], ["--copies", "deaf"]], ids=["", "deaf"])
def test_copies_end_when_the_first_process_fails(programs, copies):
    programs.stay()
    program = programs.start(
        "--processes", "2", "--first", "fails", *copies, CUDA_VISIBLE_DEVICES=""
    )
    (copy,) = programs.wait_for(1, "copy")
    programs.wait_for(1, "first")
    os.rename(programs.folder / "stay", programs.folder / "gone")
    status, log = program.end()
    assert status == 1
    assert not runs(copy[1])
    assert "further processes failed" not in log


def test_copies_end_when_the_first_process_is_killed(programs):
    programs.stay()
    program = programs.start("--gpus", "3", CUDA_VISIBLE_DEVICES="0,1,2")
    programs.wait_for(3)
    program.process.kill()
    wait_until_ended(*(line[1] for line in programs.diary("copy")))


def test_a_job_that_is_told_to_end_gives_back_what_it_holds(programs):
    programs.stay()
    program = programs.start("--gpus", "2", CUDA_VISIBLE_DEVICES="0,1")
    programs.wait_for(2)
    assert len(programs.locks()) == 2
    program.process.terminate()
    status, log = program.end()
    assert status == 128 + signal.SIGTERM
    assert "WARNING ends early: it was told to, by SIGTERM\n" in log
    assert "Traceback" not in log
    assert len(programs.diary("left")) == 2
    assert programs.locks() == []


@pytest.mark.parametrize(
    ("option", "value"), [("--gpus", "-1"), ("--processes", "0"), ("--workers", "0")]
)
def test_options_that_mean_nothing_are_refused(programs, option, value):
    status, log = programs.start(option, value, CUDA_VISIBLE_DEVICES="").end()
    assert status == 2
    assert f"error: argument {option}: {value}: give " in log


# GPUs


def test_two_jobs_never_hold_one_gpu_at_a_time(programs):
    """Each holds a GPU for as long as a file says so that only one of them can make."""
    text = PROGRAM.replace('    tell("copy"', '    busy.touch(exist_ok=False)\n    tell("copy"')
    text = text.replace(
        "    finally:", "        time.sleep(0.1)\n        busy.unlink()\n    finally:"
    )
    (programs.folder / "program.py").write_text(text)
    started = [
        programs.start("--gpus", gpus, CUDA_VISIBLE_DEVICES="0,1") for gpus in ("1", "1", "1", "1")
    ]
    for program in started:
        status, log = program.end()
        assert status == 0, log
    assert {line[2] for line in programs.diary("first")} == {"0", "1"}
    assert programs.locks() == []


def test_a_job_waits_for_a_gpu_and_goes_on_when_it_is_free(programs):
    programs.stay()
    first = programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="0")
    programs.wait_for(1)
    second = programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="0")
    line = ""
    while "waiting" not in line:
        line = second.process.stderr.readline()
    assert line.endswith("INFO waiting for 1 free GPU(s) of 0\n")
    time.sleep(0.3)
    assert len(programs.diary()) == 1
    first.process.kill()
    assert programs.wait_for(2)[1][2] == "0"
    programs.stay(False)
    assert second.end()[0] == 0
    assert programs.locks() == []


def test_a_job_that_waits_for_two_gpus_keeps_none_from_others(programs):
    programs.stay()
    programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="1")
    programs.wait_for(1)
    both = programs.start("--gpus", "2", CUDA_VISIBLE_DEVICES="0,1")
    while "waiting for 2 free GPU(s) of 0, 1" not in both.process.stderr.readline():
        pass
    programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="0")
    assert programs.wait_for(2)[1][2] == "0"


@pytest.mark.parametrize(("other", "told"), [("18", 2), ("17", 1)])
def test_the_gpus_of_a_slurm_job_are_its_own(programs, other, told):
    programs.stay()
    programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID="17")
    programs.wait_for(1)
    second = programs.start("--gpus", "1", CUDA_VISIBLE_DEVICES="0", SLURM_JOB_ID=other)
    if told == 1:
        while "waiting for 1 free GPU(s) of 0" not in second.process.stderr.readline():
            pass
        time.sleep(0.2)
    programs.wait_for(told)
    assert len(programs.diary()) == told


UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
OLD_SLICE = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["0"]),
        ("2,0", ["2", "0"]),
        (" 1, 2 ", ["1", "2"]),
        ("1,1", ["1"]),
        (f"{UUID},{OLD_SLICE}", [UUID, OLD_SLICE]),
    ],
)
def test_visible_gpus_are_those_that_cuda_sees(monkeypatch, tmp_path, named, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    with reserved(2) as held:
        assert held == gpus
        assert len(list(tmp_path.iterdir())) == len(gpus)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_gpus_has_nothing_to_reserve(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    with reserved(1) as held:
        assert held == []
        assert list(tmp_path.iterdir()) == []


# The real thing


def settings() -> dict[str, Any]:
    return {
        "seed": 0,
        "subset": {"fraction": 0.5},
        "architecture": {"width": 4},
        "recipe": recipe_values(epochs=3),
    }


@pytest.fixture(scope="module")
def alone(planted, tmp_path_factory) -> Path:
    """A shard that one process has trained."""
    folder = tmp_path_factory.mktemp("alone")
    stage = SourceStage(**settings())
    train_sources(
        source_models(stage, range(6), list(map(str, range(CLASSES)))),
        stage,
        planted,
        folder / "shard.safetensors",
        folder / "shard.parquet",
        Origin({}, {}, ""),
        JobOptions(gpus=0, processes=1, workers=1, scratch=None, failed_models="stop"),
    )
    return folder


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="its GPUs are not these")
@pytest.mark.parametrize(
    ("options", "visible", "processes"),
    [(["--gpus", "2"], "0,1", 2), (["--processes", "3"], "", 3)],
    ids=["two GPUs", "three processes"],
)
def test_processes_train_each_model_once_with_the_same_result(
    alone, planted, tmp_path, options, visible, processes
):
    finished = subprocess.run(
        [
            *(sys.executable, str(CHECKOUT / "scripts" / "train_sources.py")),
            *("--settings", json.dumps(settings()), "--shard", "000000-000005"),
            *("--data", str(planted), "--weights", str(tmp_path / "shard.safetensors")),
            *("--table", str(tmp_path / "shard.parquet"), *options),
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(CHECKOUT / "workflow"),
            "CUDA_VISIBLE_DEVICES": visible,
        },
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    log = finished.stderr
    assert finished.returncode == 0, log
    starts = [line for line in log.splitlines() if ": starts, seeds" in line]
    assert sorted(line.split("INFO ")[1].split(":")[0] for line in starts) == [
        f"source model {number}" for number in range(6)
    ]
    assert log.count("train_sources starts: process ") == processes
    tables = [pq.read_table(folder / "shard.parquet") for folder in (alone, tmp_path)]
    assert tables[0].replace_schema_metadata(None).equals(tables[1].replace_schema_metadata(None))
    assert identity(alone / "shard.safetensors") == identity(tmp_path / "shard.safetensors")
    assert not (tmp_path / ".partial").exists()
