"""What stands before Prefect's server: requests that a page of another site could have made are refused.

Prefect's server asks for no password, serves any Host and lets any page read its answers, and a deployment's pull
steps are shell commands. So a browser that has a foreign page open could be made to run one. A page reaches this
machine under its own Origin, or under a name of its own that resolves to 127.0.0.1, or by a form, which cannot send
JSON; each is told by a header that a page cannot set.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

READING = frozenset(("GET", "HEAD", "OPTIONS"))


class OwnOrigin:
    """An ASGI application that passes on what comes from its own origin, or from no browser."""

    def __init__(self, app: App, port: int) -> None:
        self.app = app
        self.hosts = frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))
        self.origins = frozenset(f"http://{host}" for host in self.hosts)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        why = self.refusal(scope.get("method", "GET"), scope["headers"])
        if why is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": why})
        body = json.dumps({"detail": why}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request is refused, in one sentence; None for one that is passed on."""
        found: dict[str, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        own = " or ".join(sorted(self.hosts))
        host = found.get("host", [])
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return f"this server answers under {own} alone; it got the host {_shown(host)}"
        origin = found.get("origin", [])
        if any(each.lower() not in self.origins for each in origin):
            return f"this server takes requests of its own pages alone; it got the origin {_shown(origin)}"
        has_body = found.get("content-length", ["0"]) != ["0"] or "transfer-encoding" in found
        kind = found.get("content-type", [])
        is_json = len(kind) == 1 and kind[0].split(";")[0].strip().lower() == "application/json"
        if method not in READING and has_body and not is_json:
            return f"this server takes application/json alone; it got the content type {_shown(kind)}"
        return None


def _shown(values: list[str]) -> str:
    return repr(", ".join(values)[:80]) if values else "(none)"
