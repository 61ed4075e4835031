"""Ctrl-C while a command imports what it needs: no traceback, and none where it has begun."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts import as_command
from kernels.interrupts import end_at_once_while_importing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disposition():
    """As Python begins with in the foreground; the one of before is given back after the test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_library_and_what_runs_in_the_background_hear_interrupts_as_before(disposition, monkeypatch):
    end_at_once_while_importing()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    monkeypatch.setattr(sys, "argv", ["-m"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_at_once_while_importing()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_command_hears_of_ctrl_c_once_it_has_begun(disposition, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["-m"])
    end_at_once_while_importing()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL

    def main() -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    assert as_command(main)() == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("words", "slow", "ended"),
    [
        (["artifacts", "ls"], "pydantic", (-signal.SIGINT, b"")),
        (["pipeline.generate", "x", "--prompt", "x"], "torch", (-signal.SIGINT, b"")),
        # It has begun by then: what needs no torch is told before it is imported.
        (["stages", "ls"], "torch", (130, b"interrupted; run the same command again to go on\n")),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_ctrl_c_while_a_command_imports_leaves_no_traceback(words, slow, ended, tmp_path):
    (tmp_path / slow).mkdir()
    (tmp_path / slow / "__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # Who runs tests in the background may ignore interrupts, which its children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == ended
