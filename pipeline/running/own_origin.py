"""What stands before Prefect's server: requests that a page of another site could have made are refused.

Prefect's server serves any Host and lets any page read its answers, and a deployment's pull steps are shell commands.
So a browser that has a foreign page open, and the auth string, could be made to run one. A page reaches this machine
under its own Origin, or under a name of its own that resolves to 127.0.0.1, or by a form, which cannot send JSON; each
is told by a header that a page cannot set. Nor may a page show one of the server's in a frame and have it clicked.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

READING = frozenset(("GET", "HEAD", "OPTIONS"))
NO_FRAMES = (b"x-frame-options", b"DENY")


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
            return await self.app(scope, receive, _without_frames(send))
        if scope["type"] == "websocket":
            await receive()
            return await send({"type": "websocket.close", "code": 1008, "reason": why})
        await answer(send, 403, "application/json", json.dumps({"detail": why}).encode())

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


async def answer(send: Send, status: int, kind: str, body: bytes, *more: tuple[str, str]) -> None:
    """Sends a whole answer, which nobody is to keep."""
    named = (("content-type", kind), ("content-length", str(len(body))), ("cache-control", "no-store"), *more)
    headers = [(name.encode(), value.encode()) for name, value in named]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _without_frames(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), NO_FRAMES]}
        await send(message)

    return sending


def _shown(values: list[str]) -> str:
    return repr(", ".join(values)[:80]) if values else "(none)"
