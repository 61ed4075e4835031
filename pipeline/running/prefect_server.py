"""Prefect's server as a process of our own on 127.0.0.1: started, waited for, found, stopped with what needs it.

Prefect is not imported here but by the server's process. That process ends by itself when its parent is gone, so that
a run that was killed leaves no server behind. Nothing but the standard library is imported, so that a server can be
starting while torch and Prefect are.
"""

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
USUAL_PORT = 4200


@contextmanager
def announced_server(port: int, *, home: Path) -> Iterator[str]:
    """A server with the UI that other processes of this home find and use while the block lasts."""
    starting = begin(port, home=home, ui=True)
    try:
        _announcement(home).write_text(starting.wait())
        yield starting.url
    finally:
        _announcement(home).unlink(missing_ok=True)
        starting.end()


def announced(home: Path) -> str | None:
    """The URL of the announced server, if there is one and it answers."""
    path = _announcement(home)
    url = path.read_text().strip() if path.is_file() else ""
    return url if url and is_healthy(url) else None


def _announcement(home: Path) -> Path:
    return home / "ui-url"


@dataclass(frozen=True, slots=True)
class Starting:
    """A server's process, which may not answer yet."""

    url: str
    home: Path
    process: "subprocess.Popen[bytes]"

    def wait(self, timeout: float = 120) -> str:
        """Its URL, as soon as it answers. RuntimeError if it ends before, or is longer about it than `timeout` s."""
        start = time.monotonic()
        log = self.home / "server.log"
        while not is_healthy(self.url):
            if self.process.poll() is not None:
                raise RuntimeError(f"Prefect's server ended with code {self.process.returncode}; {log} says why")
            if time.monotonic() - start > timeout:
                raise RuntimeError(f"Prefect's server did not answer within {timeout:.0f} s; {log} may say why")
            time.sleep(0.1)
        return self.url

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def begin(port: int, *, home: Path, ui: bool) -> Starting:
    """Starts a server and does not wait for it."""
    url = f"http://127.0.0.1:{port}"
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": "true" if ui else "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # Prefect's own default lets the pages of any site read its answers.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
    }
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.running.prefect_server", str(port), str(home), str(os.getpid())],
            env={**os.environ, **settings}, stdout=log, stderr=log, cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for us: the server must still hear how the run ended
        )  # fmt: skip
    return Starting(url, home, process)


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
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_for(wanted: int | None) -> int:
    """The wanted port, ValueError if it is taken; with none wanted the usual one, or any other that is free."""
    port = wanted or USUAL_PORT
    if not _is_taken(port):
        return port
    if wanted is None:
        return free_port()
    raise ValueError(
        f"port {port} of 127.0.0.1 is taken by another program; give another one with --port, or leave --port out"
    )


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will: closed connections linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _serve(port: int, home: Path, parent: int) -> None:
    """The server itself, in its own process, for as long as the parent lives."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # One at a time: of two servers that both set up a new database, one fails.
    lock = os.open(home / "starting.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    gc.disable()  # a new database takes a hundred migrations, and they a quarter less time so
    threading.Thread(target=_settle_when_healthy, args=(port, lock), daemon=True).start()
    import uvicorn.importer  # only the server's process needs it

    from pipeline.running.own_origin import OwnOrigin

    create_app = uvicorn.importer.import_from_string("prefect.server.api.server:create_app")
    uvicorn.run(
        OwnOrigin(create_app(), port),
        host="127.0.0.1",
        port=port,
        log_level="error",
        timeout_keep_alive=30,
    )


def _settle_when_healthy(port: int, lock: int) -> None:
    while not is_healthy(f"http://127.0.0.1:{port}"):
        time.sleep(0.2)
    gc.enable()
    os.close(lock)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
