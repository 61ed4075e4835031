"""What a page of another site, another name for this machine, or another local user may send to a server of ours."""

import base64
import json
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

JSON = {"Content-Type": "application/json"}
SOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Protocol": "prefect",
}


@dataclass(frozen=True, kw_only=True)
class Attack:
    name: str
    refused: int
    """The status that must answer it."""
    method: str = "POST"
    path: str
    body: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


def asked(
    server: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of the answer of HOST:PORT to a request with these headers, a Host among them or its own."""
    connection = HTTPConnection(server, timeout=20)
    data = None if body is None else body.encode()
    length = {} if data is None else {"Content-Length": str(len(data))}
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": server, **(headers or {}), **length}.items():
            connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def known(auth: str) -> dict[str, str]:
    """The header by which a client shows that it has the auth string."""
    return {"Authorization": "Basic " + base64.b64encode(auth.encode()).decode()}


def told(server: str, auth: str, method: str, path: str, body: Any = None) -> Any:
    """What the server answers to a client of our own."""
    text = None if body is None else json.dumps(body)
    for _ in range(50):
        status, answer = asked(server, method, path, text, {**(JSON if text else {}), **known(auth)})
        if status != 503:  # the database is busy: Prefect's clients ask again, too
            break
        time.sleep(0.2)
    assert status in (200, 201, 204), (status, answer)
    return json.loads(answer) if answer else None


def shell_step(canary: Path) -> dict[str, Any]:
    """A deployment's change after which its next run makes the file."""
    return {"pull_steps": [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {canary}"}}]}


def attacks(server: str, deployment: str, canary: Path) -> list[Attack]:
    """Every one must be refused. `deployment` is the id of one that runs here, `canary` a file that is not there."""
    port = server.rpartition(":")[2]
    here, start = f"/api/deployments/{deployment}", f"/api/deployments/{deployment}/create_flow_run"
    change, flow = json.dumps(shell_step(canary)), json.dumps({"name": "made-by-a-page"})
    foreign, rebound = {"Origin": "http://evil.example"}, f"evil.example:{port}"
    return [
        Attack(name="foreign origin changes", refused=403, method="PATCH", path=here, body=change,
               headers={**JSON, **foreign}),
        Attack(name="foreign origin starts", refused=403, path=start, body="{}", headers={**JSON, **foreign}),
        Attack(name="other port changes", refused=403, method="PATCH", path=here, body=change,
               headers={**JSON, "Origin": "http://127.0.0.1:1"}),
        Attack(name="sandboxed page", refused=403, path=start, body="{}", headers={**JSON, "Origin": "null"}),
        Attack(name="foreign host reads", refused=403, method="GET", path=here, headers={"Host": "evil.example"}),
        Attack(name="rebound name reads", refused=403, method="GET", path=here, headers={"Host": rebound}),
        Attack(name="rebound name changes", refused=403, method="PATCH", path=here, body=change,
               headers={**JSON, "Host": rebound, "Origin": f"http://{rebound}"}),
        Attack(name="rebound name asks for proof", refused=403, method="GET", path="/proof/" + "0" * 32,
               headers={"Host": rebound}),
        Attack(name="simple post", refused=403, path=start, body="{}"),
        Attack(name="simple post as text", refused=403, path=start, body="{}",
               headers={"Content-Type": "text/plain;charset=UTF-8"}),
        Attack(name="simple post of a form", refused=403, path="/api/flows/", body="name=made-by-a-page",
               headers={"Content-Type": "application/x-www-form-urlencoded"}),
        Attack(name="foreign socket", refused=403, method="GET", path="/api/events/out",
               headers={**SOCKET, **foreign}),
        # Another user of this machine, who can send any header but does not have the auth string.
        Attack(name="other user changes", refused=401, method="PATCH", path=here, body=change, headers=JSON),
        Attack(name="other user starts", refused=401, path=start, body="{}", headers=JSON),
        Attack(name="other user adds", refused=401, path="/api/flows/", body=flow, headers=JSON),
        Attack(name="other user reads", refused=401, path="/api/flows/filter", body="{}", headers=JSON),
        Attack(name="other user without a body", refused=401, method="DELETE", path=here),
        Attack(name="other user guesses", refused=401, method="PATCH", path=here, body=change,
               headers={**JSON, **known("A" * 43)}),
        Attack(name="other user says nothing", refused=401, method="PATCH", path=here, body=change,
               headers={**JSON, **known("")}),
        Attack(name="other user as our page", refused=401, method="PATCH", path=here, body=change,
               headers={**JSON, "Origin": f"http://{server}"}),
    ]  # fmt: skip
