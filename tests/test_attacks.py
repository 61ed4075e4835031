"""Attacks on a server of ours in a process of its own. Those on `run`, `ui` and `serve`: tests/browser."""

import json
import os
import stat
from http.client import HTTPConnection
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from pipeline.running.prefect_server import begin, free_port, is_own, own_auth
from tests.attacks import asked, attacks, known, told

PREFECT = Subprotocol("prefect")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    before = os.umask(0)  # the mode of the auth string is nobody else's to set
    try:
        starting = begin(free_port(), home=tmp_path_factory.mktemp("attacked") / "home", ui=True)
    finally:
        os.umask(before)
    try:
        starting.wait()
        yield starting
    finally:
        starting.end()


@pytest.fixture(scope="module")
def server(started) -> str:
    return started.url.removeprefix("http://")


@pytest.fixture(scope="module")
def deployment(started, server) -> str:
    flow = told(server, started.auth, "POST", "/api/flows/", {"name": "attacked"})
    new = {"name": "attacked", "flow_id": flow["id"], "entrypoint": "flows.py:report"}
    return told(server, started.auth, "POST", "/api/deployments/", new)["id"]


def test_every_attack_is_refused_and_changes_nothing(started, server, deployment, tmp_path):
    before = told(server, started.auth, "GET", f"/api/deployments/{deployment}")
    for attack in attacks(server, deployment, tmp_path / "canary"):
        status, answer = asked(server, attack.method, attack.path, attack.body, attack.headers)
        assert status == attack.refused, (attack.name, answer)
        if attack.refused == 403:  # not even with the auth string, which the browser of its owner may hold
            with_it = {**attack.headers, **known(started.auth)}
            assert asked(server, attack.method, attack.path, attack.body, with_it)[0] == 403, attack.name
    assert told(server, started.auth, "GET", f"/api/deployments/{deployment}") == before
    assert told(server, started.auth, "POST", "/api/flow_runs/filter", {}) == []
    assert [flow["name"] for flow in told(server, started.auth, "POST", "/api/flows/filter", {})] == ["attacked"]


@pytest.mark.parametrize("path", ["/api/events/in", "/api/events/out", "/api/logs/out"])
def test_no_socket_is_of_use_without_the_auth_string(started, server, path):
    address = f"ws://{server}{path}"  # without a protocol named, nobody asks for the string
    with pytest.raises((ConnectionClosed, InvalidStatus)), connect(address, proxy=None) as socket:
        socket.recv(timeout=20)
    for token in (None, "", "A" * 43):
        with connect(address, subprotocols=[PREFECT], proxy=None) as socket:
            socket.send(json.dumps({"type": "auth", "token": token}))
            with pytest.raises(ConnectionClosed):
                socket.recv(timeout=20)
    with connect(address, subprotocols=[PREFECT], proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": started.auth}))
        assert json.loads(socket.recv(timeout=20)) == {"type": "auth_success"}


def test_the_auth_string_lies_where_its_owner_alone_reads(started):
    path = started.home / "auth-string"
    assert path.read_text() == started.auth
    assert stat.filemode(path.stat().st_mode) == "-rw-------"
    assert stat.filemode(started.home.stat().st_mode) == "drwx------"


def test_nobody_who_can_list_processes_sees_the_auth_string(started):
    assert started.auth.encode() not in Path(f"/proc/{started.process.pid}/cmdline").read_bytes()


def test_a_server_proves_that_it_is_ours_and_is_not_told_the_string(started):
    assert own_auth(started.url, started.home) == started.auth
    assert not is_own(started.url, "A" * 43)
    assert not is_own(f"http://127.0.0.1:{free_port()}", started.auth)


def test_no_page_may_hold_the_ui_in_a_frame_and_the_entrance_runs_no_other_script(started, server):
    for path in ("/v2/", "/enter/v2/artifacts", "/ui-settings"):
        assert frame_rule(server, path) == "DENY"
    status, page = asked(server, "GET", "/enter/v2/artifacts")
    assert status == 200
    assert "prefect-password" in page
    for path in ("/enter", "/enter//evil.example", "/enter/v2x", "/enter/v2/..//evil.example", "/enter/v2/%0a"):
        assert "prefect-password" not in asked(server, "GET", path)[1], path


def frame_rule(server: str, path: str) -> str | None:
    connection = HTTPConnection(server, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        return answer.getheader("X-Frame-Options")
    finally:
        connection.close()
