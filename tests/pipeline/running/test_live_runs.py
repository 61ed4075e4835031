"""A run is alive as long as its process is, and not a moment longer."""

import os
import signal

from pipeline.running.live_runs import alive, forget, gone


def test_a_run_is_not_gone_while_it_goes_on_nor_after_it_ended_in_good_order(tmp_path):
    folder = tmp_path / "running"
    assert gone(folder) == []
    with alive("a", folder):
        assert gone(folder) == []
        with alive("a", folder):  # tried again, before its first process has quite ended
            assert gone(folder) == []
    assert gone(folder) == []


def test_a_run_that_raises_has_ended_in_good_order(tmp_path):
    try:
        with alive("a", tmp_path):
            raise RuntimeError("no")
    except RuntimeError:
        assert gone(tmp_path) == []


def test_a_run_whose_process_was_killed_is_gone_until_it_is_forgotten(tmp_path):
    with alive("other", tmp_path):
        child = os.fork()
        if child == 0:
            with alive("killed", tmp_path):
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
        assert gone(tmp_path) == ["killed"]
        forget("killed", tmp_path)
        assert gone(tmp_path) == []
