import signal
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_influence.operation import controller
from transfer_influence.operation.controller import Controller, end_without_jobs, log_of

LISTENS = """
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path(sys.argv[1]).touch()
    if sys.argv[2] == "obeys":
        sys.exit()
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("answer", ["obeys", "goes on"])
def test_a_snakemake_is_asked_to_end_before_it_is_killed(answer, tmp_path, monkeypatch):
    monkeypatch.setattr(controller, "GRACE", 2.0)
    told = tmp_path / "told"
    command = [sys.executable, "-c", LISTENS, str(told), answer]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end_without_jobs(process.pid)
        assert process.stdout.read() == b""  # which it is not before the process has ended
    assert told.exists()


def test_a_snakemake_that_has_ended_is_no_mistake():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    end_without_jobs(process.pid)


def controller_of(command: list[str], folder: Path) -> Controller:
    """Return a controller that runs any command as its Snakemake."""
    log_of(folder).parent.mkdir(parents=True)
    return Controller(
        snakemake=command,
        study="tiny",
        results=folder,
        folder=folder,
        asks_slurm=False,
        leftovers="wait",
        patience=60.0,
        gpus=None,
    )


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_what_tells_a_controller_of_its_time_limit_does_not_end_snakemake(number, tmp_path):
    # SLURM may send it to all processes of a job, and by default it ends them.
    command = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {number}); print('lives')"]
    assert controller_of(command, tmp_path).start().wait() == 0
    assert log_of(tmp_path).read_text() == "lives\n"
    assert number not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
