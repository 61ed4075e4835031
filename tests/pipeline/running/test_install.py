"""Where `make setup` takes torch from, against a pip and an index of the test's own; nothing is fetched."""

import http.server
import json
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.running import install
from pipeline.running.install import answers, has_gpu, has_own_index, index_for, installed, main, pinned

PYTHON = f"cp{sys.version_info.major}{sys.version_info.minor}"
PAGE = '<a href="/whl/torch-2.13.0%2Bcpu-{python}-{python}-manylinux_2_28_x86_64.whl#sha256=0">torch</a>'
PIP = """
import json, os, sys
words = sys.argv[1:]
with open({log!r}, "a") as log:
    print(json.dumps(words), file=log)
if words[:2] == ["config", "list"]:
    print({config!r})
elif "--dry-run" in words:
    print(json.dumps({{"install": [{{"metadata": {{"version": {offered!r}}}}}]}}))
elif "--no-deps" in words:
    sys.exit({torch_code})
"""


class Index:
    """A server of one page, which may keep everybody waiting."""

    def __init__(self, page: str, seconds: float = 0.0) -> None:
        self.page, self.seconds, self.asked = page, seconds, []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                time.sleep(index.seconds)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(index.page.encode())

            def log_message(self, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def index(monkeypatch):
    """index(page, seconds): a server, closed in the end."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made: list[Index] = []

    def make(page: str = PAGE.format(python=PYTHON), seconds: float = 0.0) -> Index:
        made.append(Index(page, seconds))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """pip(...): from now on pip is a script that writes down what it was asked for; returns where."""
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(install, "installed", lambda package: None)
    monkeypatch.setattr(sys, "platform", "linux")

    def make(*, config: str = "", offered: str = "2.13.0", torch_code: int = 0) -> Path:
        log, script = tmp_path / "log", tmp_path / "pip.py"
        script.write_text(PIP.format(log=str(log), config=config, offered=offered, torch_code=torch_code))
        monkeypatch.setattr(install, "PIP", (sys.executable, str(script)))
        return log

    return make


def calls(log: Path) -> list[list[str]]:
    """What pip was asked for, without the words of every call."""
    every = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [[word for word in words if word not in install.QUIET] for words in every]


def test_a_device_of_a_driver_is_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("nvidia0", "kfd"):
        devices = tmp_path / name
        devices.mkdir()
        assert not has_gpu(devices)
        (devices / name).touch()
        assert has_gpu(devices)


@pytest.mark.parametrize(
    ("script", "found"),
    [("echo 'GPU 0: NVIDIA H200'", True), ("echo 'No devices were found'; exit 6", False), ("exit 9", False)],
)
def test_nvidia_smi_is_asked_where_no_device_is_seen(script, found, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert has_gpu(tmp_path / "dev") == found


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ("global.index-url='https://mirror/simple'", True),
        (":env:.index-url='https://mirror/simple'", True),
        ("install.no-index='true'", True),
        ("global.extra-index-url='file:///opt/simple'\n:env:.find-links='/opt/wheels'", False),
        ("", False),
    ],
)
def test_an_index_of_the_users_is_known_from_pips_configuration(config, own):
    assert has_own_index(config) == own


def test_an_index_answers_if_it_has_this_version_for_this_python(index):
    assert answers(index().url, "2.13.0", 5)
    assert not answers(index().url, "2.13", 5)
    assert not answers(index(PAGE.format(python="cp38")).url, "2.13.0", 5)
    assert not answers(index("<html>Not found</html>").url, "2.13.0", 5)
    assert not answers("http://127.0.0.1:9", "2.13.0", 5)


def test_an_index_that_does_not_answer_is_not_waited_for(index):
    start = time.monotonic()
    assert not answers(index(seconds=2.0).url, "2.13.0", 0.2)
    assert time.monotonic() - start < 1.5


def test_without_a_gpu_torch_comes_from_pytorchs_own_index(index, pip, capfd):
    log, there = pip(), index()
    assert index_for("2.13.0", there.url) == there.url
    assert there.asked == ["/torch/"]
    assert capfd.readouterr().out == f"no GPU here; torch 2.13.0 for CPUs comes from {there.url}, about 0.2 GB\n"
    assert ["config", "list"] in calls(log)


@pytest.mark.parametrize(
    ("offered", "said"),
    [("2.13.0", "torch 2.13.0, with CUDA's libraries about 2.7 GB"), ("2.13.0+cpu", "torch 2.13.0+cpu, 0.2 GB")],
)
def test_where_that_does_not_answer_pip_is_asked_what_it_takes(offered, said, index, pip, capfd):
    pip(offered=offered)
    there = index("")
    assert index_for("2.13.0", there.url) is None
    assert capfd.readouterr().out == f"no GPU here, and {there.url} has not answered; pip takes {said}\n"


def test_a_pip_that_says_nothing_is_not_waited_for(index, tmp_path, pip, monkeypatch, capfd):
    pip()
    slow = tmp_path / "slow.py"
    slow.write_text("import sys, time\nif '--dry-run' in sys.argv: time.sleep(30)\n")
    monkeypatch.setattr(install, "PIP", (sys.executable, str(slow)))
    monkeypatch.setattr(install, "SECONDS_TO_CHOOSE", 0.5)
    start = time.monotonic()
    assert index_for("2.13.0", index("").url) is None
    assert time.monotonic() - start < 5
    assert "pip takes torch 2.13.0, with CUDA's libraries about 2.7 GB" in capfd.readouterr().out


def test_a_gpu_or_another_system_changes_nothing_and_says_nothing(index, pip, monkeypatch, capfd):
    log, there = pip(), index()
    monkeypatch.setattr(install, "has_gpu", lambda: True)
    assert index_for("2.13.0", there.url) is None
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert index_for("2.13.0", there.url) is None
    assert (there.asked, calls(log), capfd.readouterr().out) == ([], [], "")


def test_an_index_of_the_users_is_taken_as_it_is(index, pip, capfd):
    there = index()
    pip(config="global.index-url='https://mirror/simple'")
    assert index_for("2.13.0", there.url) is None
    assert there.asked == []
    assert "torch comes from the index that pip is configured to, 2.7 GB if with CUDA" in capfd.readouterr().out


def test_torch_is_taken_first_and_alone_then_all_the_rest(pip, monkeypatch, capfd):
    log = pip()
    monkeypatch.setattr(install, "index_for", lambda version: "https://cpu")
    assert main(["-e", ".[hf,dev]"]) == 0
    assert calls(log) == [
        ["install", "--no-deps", "--index-url", "https://cpu", f"torch=={pinned('torch')}"],
        ["install", "-e", ".[hf,dev]"],
    ]
    assert capfd.readouterr().out.count("\n") == 1


def test_where_torch_cannot_be_had_there_it_comes_with_the_rest(pip, monkeypatch, capfd):
    log = pip(torch_code=1)
    monkeypatch.setattr(install, "index_for", lambda version: "https://cpu")
    assert main(["-e", "."]) == 0
    assert calls(log)[-1] == ["install", "-e", "."]
    assert "pip could not take torch from there; it comes with the others, about 2.7 GB\n" in capfd.readouterr().out


def test_where_torch_is_installed_already_no_index_is_looked_for(pip, monkeypatch):
    log = pip()
    monkeypatch.setattr(install, "installed", lambda package: pinned("torch"))
    monkeypatch.setattr(install, "index_for", lambda version: pytest.fail("an index is looked for"))
    assert main(["-e", "."]) == 0
    assert calls(log) == [["install", "-e", "."]]


def test_a_build_for_cpus_is_the_pinned_version(monkeypatch):
    monkeypatch.setattr(install.metadata, "version", lambda package: "2.13.0+cpu")
    assert installed("torch") == pinned("torch") == "2.13.0"
