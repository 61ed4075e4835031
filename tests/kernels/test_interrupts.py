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
    """Given back after the test."""
    before = signal.getsignal(signal.SIGINT)
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


@pytest.mark.parametrize("package", ["artifacts", "pipeline.generate", "stages"])
def test_ctrl_c_while_torch_is_imported_leaves_no_traceback(package, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    words = ["x", "--prompt", "x"] if package == "pipeline.generate" else ["ls"]
    process = subprocess.Popen(
        [sys.executable, "-m", package, *words], cwd=ROOT, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, b"")
