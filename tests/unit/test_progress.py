import io
import logging
import os
import re
import socket
import sys

import pytest

from transfer_influence.errors import UserError
from transfer_influence.progress import command_line, progress


def test_progress_yields_every_item(capsys):
    assert list(progress("abc", "letters", "letter")) == ["a", "b", "c"]


def test_progress_in_a_log_file_is_made_of_lines(capsys):
    list(progress(range(3), "models", "model"))
    written = capsys.readouterr().err
    assert "\r" not in written
    assert written.endswith("\n")
    assert written.splitlines()[-1].startswith("models: 100%")
    assert "3/3" in written
    assert all(line.strip() for line in written.splitlines())


def test_progress_of_a_generator_needs_its_length(capsys):
    list(progress(iter(range(4)), "models", "model", total=4))
    assert "4/4" in capsys.readouterr().err


def test_progress_in_a_terminal_is_a_live_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress(range(3), "models", "model"))
    assert terminal.getvalue().startswith("\rmodels")


def test_a_user_error_is_one_line_and_status_1(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without those of pytest
    with pytest.raises(SystemExit) as stopped, command_line("rank_units"):
        raise UserError("models: 1 is too few; raise it.")
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    start, line = captured.err.splitlines()
    assert " INFO rank_units starts: process " in start
    assert line.endswith(" ERROR models: 1 is too few; raise it.")


def test_a_percent_sign_in_a_sentence_is_printed_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without those of pytest
    with pytest.raises(SystemExit), command_line("rank_units"):
        raise UserError("8-100 %s of the area")
    assert capsys.readouterr().err.endswith("8-100 %s of the area\n")


def test_a_bug_keeps_its_exception():
    with pytest.raises(KeyError), command_line("rank_units"):
        raise KeyError("a bug")


def test_a_program_says_when_it_starts_where_and_how_long_it_took(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # without those of pytest
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with command_line("rank_units") as log:
        assert log.name == "rank_units"
    captured = capsys.readouterr()
    assert captured.out == ""
    time, host = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.escape(socket.gethostname())
    start, end = captured.err.splitlines()
    who = f"process {os.getpid()} on {host}, SLURM job 17"
    assert re.fullmatch(f"{time} INFO rank_units starts: {who}", start)
    assert re.fullmatch(rf"{time} INFO rank_units ends after \d+\.\d s", end)


def test_a_program_that_fails_does_not_say_that_it_ends(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(KeyError), command_line("rank_units"):
        raise KeyError("a bug")
    assert " ends " not in capsys.readouterr().err
