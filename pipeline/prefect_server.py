"""Prefect's server as a process of our own on 127.0.0.1: started, waited for, stopped. Prefect is not imported here."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path


@contextmanager
def server(port: int, *, home: Path, ui: bool) -> Iterator[str]:
    """A Prefect server on 127.0.0.1 for as long as the block; yields its URL once it answers."""
    url = f"http://127.0.0.1:{port}"
    settings = {
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": "true" if ui else "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
             "--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--timeout-keep-alive", "30"],
            env={**os.environ, **settings}, stdout=log, stderr=log, cwd=home,
            start_new_session=True,  # Ctrl-C is for us: the server must still hear how the run ended
        )  # fmt: skip
    try:
        _wait_until_healthy(url, process, home)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", home: Path, timeout: float = 120) -> None:
    start = time.monotonic()
    while not is_healthy(url):
        if process.poll() is not None:
            raise RuntimeError(f"Prefect's server ended with code {process.returncode}; {home / 'server.log'} says why")
        if time.monotonic() - start > timeout:
            raise RuntimeError(
                f"Prefect's server did not answer within {timeout:.0f} s; {home / 'server.log'} may say why"
            )
        time.sleep(0.1)


def is_healthy(url: str) -> bool:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=0.9)
    try:
        connection.request("GET", "/api/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
