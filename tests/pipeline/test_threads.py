"""How threads wait. libgomp itself says what it was told: with OMP_DISPLAY_ENV it prints its settings when loaded."""

import os
import re
import subprocess
import sys

import pytest

from pipeline.running.progress import say_kernels
from pipeline.threads import SPINS_ALONE, SPINS_BESIDE_OTHERS, choose_waiting, is_busy, waiting_said
from tests.test_house import ROOT

NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")


@pytest.mark.parametrize("load", [0.0, 50.0])
@pytest.mark.parametrize("users", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_how_the_user_has_said_that_threads_wait_stays(users, load, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    environment = dict(users)
    choose_waiting(environment)
    assert environment == users
    assert waiting_said(environment) is None


@pytest.mark.parametrize(("load", "spins"), [(0.0, SPINS_ALONE), (50.0, SPINS_BESIDE_OTHERS)])
def test_on_a_busy_machine_threads_sleep_sooner_and_their_number_stays(load, spins, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    environment = {"OMP_NUM_THREADS": "2"}
    choose_waiting(environment)
    assert environment == {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": str(spins)}
    assert (waiting_said(environment) is None) == (spins == SPINS_ALONE)


@pytest.mark.parametrize(
    ("load", "cores", "ours", "busy"),
    [(0.2, 2, 2, False), (1.0, 2, 2, True), (1.0, 16, 16, True), (20.0, 64, 2, False), (64.0, 64, 2, True)],
)
def test_a_machine_is_busy_where_a_thread_would_share_its_core(load, cores, ours, busy):
    assert is_busy(load, cores=cores, ours=ours) == busy


@pytest.mark.parametrize(("device", "spins", "said"), [("cpu", "100", 1), ("cpu", "1000", 0), ("cuda", "100", 0)])
def test_a_command_on_the_cpu_says_so_once_where_threads_wait_as_on_a_busy_machine(
    device, spins, said, monkeypatch, capsys
):
    monkeypatch.setattr("pipeline.running.progress.cpu_library", lambda: "built")
    monkeypatch.setenv("GOMP_SPINCOUNT", spins)
    say_kernels(device)
    assert capsys.readouterr().err.count("no result depends on it") == said


def _libgomp_says(**chosen: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run(
        [sys.executable, "-c", "import pipeline, torch; print(torch.get_num_threads())"],
        cwd=ROOT, env={**kept, **chosen, "OMP_DISPLAY_ENV": "verbose"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = dict(re.findall(r"(GOMP_SPINCOUNT|OMP_WAIT_POLICY) = '([^']*)'", done.stderr))
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("this torch runs its threads by another library than libgomp")
    return {**said, "threads": done.stdout.strip()}


def test_libgomp_hears_of_it_and_takes_as_many_threads_as_ever():
    said = _libgomp_says()
    assert said["GOMP_SPINCOUNT"] in (str(SPINS_ALONE), str(SPINS_BESIDE_OTHERS))
    assert said["threads"] == str(len(os.sched_getaffinity(0)))


def test_libgomp_hears_what_the_user_set():
    said = _libgomp_says(OMP_WAIT_POLICY="active", OMP_NUM_THREADS="1")
    assert (said["OMP_WAIT_POLICY"], said["threads"]) == ("ACTIVE", "1")
    assert int(said["GOMP_SPINCOUNT"]) > 10**9  # an active wait has no end


@pytest.mark.parametrize("module", ["flows", "stages.bare", "pipeline.generate.command", "pipeline.symbolic.__main__"])
def test_what_is_started_imports_the_pipeline_before_torch(module):
    # Those that answer --help by themselves import torch when they are asked for more.
    order = "names = list(sys.modules); sys.exit(names.index('pipeline') > names.index('torch'))"
    code = f"import sys, {module}, torch; {order}"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
