"""Ports, and the announcement by which other processes find a server. Servers themselves start in test_flows.py."""

import socket

import pytest

from pipeline.running import prefect_server
from pipeline.running.prefect_server import announced, free_port, port_for


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
