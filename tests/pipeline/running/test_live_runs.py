"""A run is alive as long as its process is, and not a moment longer."""

import os
import signal
from uuid import uuid4

import pytest

from pipeline.running.live_runs import alive, forget, gone

A, KILLED, OTHER = (str(uuid4()) for _ in range(3))


def test_a_run_is_not_gone_while_it_goes_on_nor_after_it_ended_in_good_order(tmp_path):
    folder = tmp_path / "running"
    assert gone(folder) == []
    with alive(A, folder):
        assert gone(folder) == []
        with alive(A, folder):  # tried again, before its first process has quite ended
            assert gone(folder) == []
    assert gone(folder) == []


def test_a_run_that_raises_has_ended_in_good_order(tmp_path):
    try:
        with alive(A, tmp_path):
            raise RuntimeError("no")
    except RuntimeError:
        assert gone(tmp_path) == []


def test_a_run_whose_process_was_killed_is_gone_until_it_is_forgotten(tmp_path):
    with alive(OTHER, tmp_path):
        child = os.fork()
        if child == 0:
            with alive(KILLED, tmp_path):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert gone(tmp_path) == [KILLED]
        forget(KILLED, tmp_path)
        assert gone(tmp_path) == []


def test_what_is_no_run_is_ignored_whatever_it_is(tmp_path):
    for name in ("notes.txt", A.upper(), f"{{{A}}}", "a"):
        (tmp_path / name).touch()
    (tmp_path / OTHER).mkdir()
    os.mkfifo(tmp_path / KILLED)  # opening it would wait for ever
    assert gone(tmp_path) == []
    (tmp_path / A).touch()
    assert gone(tmp_path) == [A]


def test_a_folder_of_runs_that_is_none_is_told(tmp_path):
    (tmp_path / "running").touch()
    with (
        pytest.raises(ValueError, match=r"running is no folder to write in \(File exists\)"),
        alive(A, tmp_path / "running"),
    ):
        raise AssertionError
