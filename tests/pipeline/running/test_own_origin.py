"""Requests that a page of another site can make are refused; those of our clients and of the UI are passed on.

Attacks on servers: tests/test_attacks.py and tests/browser.
"""

import pytest

from pipeline.running.own_origin import OwnOrigin

PORT = 4200
HOST = (b"host", b"127.0.0.1:4200")
JSON, LENGTH = (b"content-type", b"application/json"), (b"content-length", b"7")


async def nothing(scope, receive, send):
    raise AssertionError("is not called")


GUARD = OwnOrigin(nothing, PORT)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", [HOST]),
        ("GET", [(b"Host", b"LOCALHOST:4200")]),
        ("POST", [HOST, JSON, LENGTH]),
        ("POST", [HOST, (b"content-type", b"application/json; charset=utf-8"), LENGTH]),
        ("POST", [HOST, (b"origin", b"http://127.0.0.1:4200"), JSON, LENGTH]),
        ("DELETE", [HOST]),
        ("POST", [HOST, (b"content-length", b"0")]),
    ],
)
def test_own_clients_and_pages_are_served(method, headers):
    assert GUARD.refusal(method, headers) is None


@pytest.mark.parametrize(
    ("method", "headers", "why"),
    [
        ("GET", [(b"host", b"evil.example:4200")], "it got the host 'evil.example:4200'"),
        ("GET", [(b"host", b"127.0.0.1:8000")], "it got the host '127.0.0.1:8000'"),
        ("GET", [], r"it got the host \(none\)"),
        ("GET", [HOST, HOST], "it got the host '127.0.0.1:4200, 127.0.0.1:4200'"),
        ("GET", [HOST, (b"origin", b"http://127.0.0.1:8000")], "it got the origin 'http://127.0.0.1:8000'"),
        ("PATCH", [HOST, (b"origin", b"http://evil.example"), JSON, LENGTH], "it got the origin 'http://evil.example'"),
        ("POST", [HOST, (b"origin", b"null")], "it got the origin 'null'"),
        ("POST", [HOST, (b"content-type", b"text/plain"), LENGTH], "it got the content type 'text/plain'"),
        ("POST", [HOST, LENGTH], r"it got the content type \(none\)"),
        ("POST", [HOST, (b"transfer-encoding", b"chunked")], r"it got the content type \(none\)"),
        ("POST", [HOST, JSON, (b"content-type", b"text/plain"), LENGTH], "'application/json, text/plain'"),
    ],
)
def test_what_a_foreign_page_can_send_is_refused_in_one_sentence(method, headers, why):
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(GUARD.refusal(method, headers))
