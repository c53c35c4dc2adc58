import subprocess
import sys

import pytest

from transfer_influence.operation import controller
from transfer_influence.operation.controller import end_without_jobs

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
