"""Requests that a page of another site can make are refused; those of our clients and of the UI are passed on."""

import json
from http.client import HTTPConnection

import pytest

from pipeline.running.own_origin import OwnOrigin
from pipeline.running.prefect_server import begin, free_port

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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    starting = begin(free_port(), home=tmp_path_factory.mktemp("home"), ui=True)
    try:
        starting.wait()
        yield starting.url.removeprefix("http://")
    finally:
        starting.end()


def asked(server, method, path, body=None, **headers) -> tuple[int, str]:
    connection = HTTPConnection(server, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        data = None if body is None else body.encode()
        length = {} if data is None else {"Content-Length": str(len(data))}
        for name, value in {"Host": server, **headers, **length}.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def test_the_attacks_end_at_the_server_and_its_own_pages_and_clients_go_on(server):
    flow = json.dumps({"name": "made-by-a-page"})
    for method, path, body, headers in (
        ("GET", "/api/admin/version", None, {"Host": "evil.example"}),
        ("GET", "/api/admin/version", None, {"Origin": "http://127.0.0.1:1"}),
        ("POST", "/api/flows/", flow, {"Content_Type": "text/plain"}),
        ("POST", "/api/flows/", flow, {}),
        ("POST", "/api/flows/", flow, {"Content_Type": "application/json", "Origin": "http://evil.example"}),
        ("GET", "/api/events/out", None, {
            "Origin": "http://evil.example", "Connection": "Upgrade", "Upgrade": "websocket",
            "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec_WebSocket_Version": "13",
        }),
    ):  # fmt: skip
        status, _ = asked(server, method, path, body, **headers)
        assert status == 403, (method, path, headers)
    status, found = asked(server, "POST", "/api/flows/filter", "{}", Content_Type="application/json")
    assert (status, json.loads(found)) == (200, [])
    own = f"http://{server}"
    assert asked(server, "POST", "/api/flows/", flow, Content_Type="application/json", Origin=own)[0] in (200, 201)
    status, page = asked(server, "GET", "/v2/")
    assert status == 200
    assert "<html" in page.lower()
