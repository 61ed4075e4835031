"""Ports, and the announcement by which other processes find a server. Servers themselves start in test_flows.py."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from pipeline.running import prefect_server
from pipeline.running.auth_string import auth_string
from pipeline.running.prefect_server import ROOT, announced, announced_server, begin, free_port, own_auth, port_for


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_that_was_asked_for_and_is_taken_is_told_with_the_remedy(taken):
    with pytest.raises(ValueError, match=f"port {taken} of 127.0.0.1 is taken by another program; .*--port"):
        port_for(taken)


def test_a_free_port_that_was_asked_for_is_taken():
    port = free_port()
    assert port_for(port) == port


def test_with_no_port_asked_for_a_free_one_stands_in_for_the_usual_one(taken, monkeypatch):
    monkeypatch.setattr(prefect_server, "USUAL_PORT", taken)
    assert port_for(None) not in (None, taken)
    monkeypatch.setattr(prefect_server, "USUAL_PORT", free := free_port())
    assert port_for(None) == free


def test_an_announced_server_that_does_not_answer_is_none(tmp_path):
    assert announced(tmp_path) is None
    (tmp_path / "ui-url").write_text(f"http://127.0.0.1:{free_port()}")
    assert announced(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    [b"", b"nonsense", b"http://evil.example:80", b"http://127.0.0.1:99999", b"http://127.0.0.1:0", b"\xff\xfe",
     b"http://127.0.0.1:80\nmore", b"http://[::", b"http://127.0.0.1:80/x" * 10_000],
)  # fmt: skip
def test_a_damaged_announcement_is_told_in_a_sentence_with_the_remedy(tmp_path, damage):
    (tmp_path / "ui-url").write_bytes(damage)
    with pytest.raises(
        ValueError, match=r"ui-url is damaged: got .*, wanted http://127.0.0.1:PORT; delete it$"
    ) as told:
        announced(tmp_path)
    assert len(str(told.value)) < 400


def test_an_announcement_that_is_no_file_is_damaged_too(tmp_path):
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink(tmp_path / "nowhere", path)):
        home = tmp_path / f"home-{len(list(tmp_path.iterdir()))}"
        home.mkdir()
        make(home / "ui-url")
        with pytest.raises(ValueError, match="got 'no file'"):
            announced(home)


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[str]]]:
    """Somebody else's server, which answers everything with this status, and what it is asked for."""
    seen = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.path}\n{self.headers}")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_does_not_know_the_auth_string_is_not_used_and_not_told_it(tmp_path):
    """One of an earlier version, one from before the string was made anew, and another user's look alike."""
    with answering(200) as (url, seen):
        (tmp_path / "ui-url").write_text(url)
        with pytest.raises(ValueError, match=f"the server at {url}, .* does not know this home's auth string.*end it"):
            announced(tmp_path)
        assert own_auth(url, tmp_path) is None
    auth = (tmp_path / "auth-string").read_text()
    assert seen
    assert not any(auth in request or "Authorization" in request for request in seen)


def test_another_program_on_the_announced_port_is_no_server(tmp_path):
    with answering(404) as (url, _):
        (tmp_path / "ui-url").write_text(url)
        assert announced(tmp_path) is None


def test_the_auth_string_goes_to_this_machine_alone(tmp_path):
    assert own_auth("https://evil.example", tmp_path) is None
    assert not (tmp_path / "auth-string").exists()


def _flows(*words: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "flows.py", *words], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize("below", ["", "below"])
def test_a_home_that_is_a_file_is_one_sentence(tmp_path, below):
    (tmp_path / "file").touch()
    home = tmp_path / "file" / below
    code, said = _flows("run", PREFECT_HOME=str(home))
    assert code == 2
    assert re.fullmatch(rf"{re.escape(str(home))} is no folder to write in \([^)]+\), .* in PREFECT_HOME\n", said)


def test_a_home_in_which_nothing_can_be_written_is_one_sentence(tmp_path, monkeypatch):
    def refused(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # whoever runs the tests may write everywhere
    with pytest.raises(ValueError, match=r"is no folder to write in \(Permission denied\), .* in PREFECT_HOME"):
        begin(free_port(), home=tmp_path, ui=False)


def test_a_damaged_announcement_ends_a_run_with_that_sentence(tmp_path):
    (tmp_path / "ui-url").write_text("nonsense")
    code, said = _flows("run", PREFECT_HOME=str(tmp_path))
    assert code == 2
    assert said == f"{tmp_path}/ui-url is damaged: got 'nonsense', wanted http://127.0.0.1:PORT; delete it\n"


@pytest.mark.parametrize("url", ["foo", "http://[::/api", "http://host:port/api", "ftp://host/api", "http:///api"])
def test_a_prefect_api_url_that_is_none_is_one_sentence(tmp_path, url):
    code, said = _flows("stage", "report", PREFECT_HOME=str(tmp_path), PREFECT_API_URL=url)
    assert code == 2
    assert said == f"PREFECT_API_URL is {url!r}, wanted: http://HOST:PORT/api; correct it, or unset it\n"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "PREFECT_LOGGING_LEVEL",
            "LOUD",
            r"its settings \(PREFECT_LOGGING_LEVEL: level: got 'LOUD', wanted: ",
        ),
        ("PREFECT_PROFILES_PATH", "/", r"profiles in / cannot be read \(.*Is a directory: '/'\); correct the file"),
    ],
)
def test_settings_that_prefect_cannot_read_are_one_sentence(tmp_path, name, value, said):
    code, told = _flows("republish", "--store", str(tmp_path), PREFECT_HOME=str(tmp_path / "home"), **{name: value})
    assert (code, told.count("\n")) == (2, 1)
    assert re.search(said, told)


@pytest.mark.parametrize("name", ["server.log", "auth-string.lock"])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/null", path)])
def test_what_is_no_file_in_a_home_is_told_and_not_waited_for(tmp_path, name, make):
    make(tmp_path / name)
    if (name, make) == ("auth-string.lock", os.mkfifo):  # a pipe is held as well as a file
        assert len(auth_string(tmp_path)) == 43
        return
    with pytest.raises(ValueError, match=r"(server's log .* cannot be written|cannot be made or locked) \("):
        begin(free_port(), home=tmp_path, ui=False)


def test_a_server_that_ends_leaves_the_announcement_of_a_later_one(tmp_path, monkeypatch):
    class Ready(SimpleNamespace):
        def wait(self) -> str:
            return self.url

        def end(self) -> None: ...

    monkeypatch.setattr(prefect_server, "begin", lambda port, **_: Ready(url=f"http://127.0.0.1:{port}"))
    with announced_server(1, home=tmp_path):
        with announced_server(2, home=tmp_path):
            assert (tmp_path / "ui-url").read_text() == "http://127.0.0.1:2"
        assert not (tmp_path / "ui-url").exists()
        (tmp_path / "ui-url").write_text("http://127.0.0.1:3")
    assert (tmp_path / "ui-url").read_text() == "http://127.0.0.1:3"


def test_a_home_whose_name_is_no_text_in_this_locale_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"PREFECT_HOME is '.*udce4', which is no text in this locale; set "):
        begin(free_port(), home=tmp_path / "\udce4", ui=False)
    assert list(tmp_path.iterdir()) == []
