"""Two pages of our own before Prefect's server: one proves whose server it is, one hands the auth string to its UI.

Prefect's UI keeps the auth string in the browser, and asks for it at a prompt where there is none. A link to /enter has
it behind `#`, which browsers send to nobody: the page tries it, keeps it where the UI looks for it, and goes on.
"""

import base64
import hashlib
import re

from pipeline.running.auth_string import proof
from pipeline.running.own_origin import App, Message, Receive, Send, answer

PROOF = "/proof/"
ENTER = "/enter"

_SCRIPT = """
const token = btoa(location.hash.slice(1)), place = location.pathname.slice("/enter".length);
fetch("/api/admin/version", {headers: {Authorization: "Basic " + token}}).then(answer => {
  if (!answer.ok) throw new Error(answer.status);
  localStorage.setItem("prefect-password", token);
  location.replace(place);
}).catch(() => { document.body.textContent =
  "This link does not open this server: it was printed by another one, or was cut short. Print it anew with " +
  "`python flows.py ui`."; });
"""
_PAGE = f"<!doctype html><meta charset=utf-8><title>Legible Experts</title><body><script>{_SCRIPT}</script>".encode()
_POLICY = f"script-src 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'"


def link(url: str, auth: str | None, place: str) -> str:
    """The address that opens the UI at a place such as /v2/artifacts, with the auth string of a server of ours."""
    return f"{url}{ENTER}{place}#{auth}" if auth else f"{url}{place}"


class Entrance:
    """An ASGI application with these two pages, which passes on all else."""

    def __init__(self, app: App, port: int, auth: str) -> None:
        self.app = app
        self.port = port
        self.auth = auth

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and (nonce := re.fullmatch(PROOF + "([0-9a-f]{32})", path)):
            return await answer(send, 200, "text/plain", proof(self.auth, self.port, nonce[1]).encode())
        if scope["type"] == "http" and re.fullmatch(ENTER + r"/v2(/[\w/-]*)?", path, re.ASCII):
            policy = f"default-src 'none'; connect-src 'self'; {_POLICY}; frame-ancestors 'none'"
            return await answer(send, 200, "text/html", _PAGE, ("content-security-policy", policy))
        return await self.app(scope, receive, send)
