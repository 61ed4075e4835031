"""Prefect's server as a process of our own on 127.0.0.1: started, waited for, found, stopped with what needs it.

Prefect is not imported here but by the server's process. That process ends by itself when its parent is gone, so that
a run that was killed leaves no server behind. Nothing but the standard library is imported, so that a server can be
starting while torch and Prefect are.
"""

import atexit
import fcntl
import gc
import hmac
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from kernels.errors import Failure, Mistake
from pipeline.parent import end_with
from pipeline.running.auth_string import auth_string, proof

ROOT = Path(__file__).resolve().parents[2]
USUAL_PORT = 4200


@contextmanager
def announced_server(port: int, *, home: Path) -> Iterator[str]:
    """A server with the UI that other processes of this home find and use while the block lasts."""
    starting = begin(port, home=home, ui=True)
    try:
        url = starting.wait()
        scratch = home / f".ui-url.{os.getpid()}"
        scratch.write_text(url)
        os.replace(scratch, _announcement(home))  # nobody reads half of it
        yield url
    finally:
        _announcement(home).unlink(missing_ok=True)
        starting.end()


def announced(home: Path) -> str | None:
    """The URL of the announced server, if there is one and it answers.

    ValueError if the announcement is damaged, or if a server answers there that does not know this home's auth string.
    """
    path = _announcement(home)
    if not os.path.lexists(path):
        return None
    url = _text_of(path)
    if not is_loopback(url):
        raise Mistake(f"{path} is damaged: got {url[:80]!r}, wanted http://127.0.0.1:PORT; delete it")
    if is_own(url, auth_string(home)):
        return url
    if not is_healthy(url):
        return None
    raise Mistake(
        f"the server at {url}, which {path} names, does not know this home's auth string: it is of an earlier version, "
        "was started before the string was made anew, or is another program. If it is yours, end it (Ctrl-C where "
        f"`python flows.py ui` or `serve` runs); if it is not, delete {path}"
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_bytes()[:1000].decode("latin-1").strip() if path.is_file() else "no file"
    except OSError as error:
        raise Mistake(f"{path} cannot be read ({error.strerror}); delete it") from error


def _announcement(home: Path) -> Path:
    return home / "ui-url"


@dataclass(frozen=True, slots=True)
class Starting:
    """A server's process, which may not answer yet."""

    url: str
    home: Path
    auth: str = field(repr=False)
    process: "subprocess.Popen[bytes]"

    def wait(self, timeout: float = 120) -> str:
        """Its URL, as soon as it answers. RuntimeError if it ends before, or is longer about it than `timeout` s."""
        start = time.monotonic()
        log = self.home / "server.log"
        while not is_own(self.url, self.auth):
            if self.process.poll() is not None:
                raise Failure(f"Prefect's server ended with code {self.process.returncode}; {log} says why")
            if time.monotonic() - start > timeout:
                raise Failure(f"Prefect's server did not answer within {timeout:.0f} s; {log} may say why")
            time.sleep(0.1)
        return self.url

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def begun_early(words: Sequence[str], *, home: Path) -> Starting | None:
    """The server that a command will need of its own, before torch and Prefect are imported: that takes as long.

    Ends Python after a sentence if the home will not do, or PREFECT_API_URL is no URL: importing Prefect might.
    """
    if {"-h", "--help", "--help-all"} & set(words):
        return None
    given = os.environ.get("PREFECT_API_URL")
    try:
        if given:
            return _check_url(given)
        return begun(home) if words[:1] in (["run"], ["stage"]) and announced(home) is None else None
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _check_url(api: str) -> None:
    try:
        parts = urlsplit(api)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    except ValueError:  # a port that is no number, half an address
        pass
    raise Mistake(f"PREFECT_API_URL is {api[:200]!r}, wanted: http://HOST:PORT/api; correct it, or unset it")


def begun(home: Path) -> Starting:
    """A temporary server without the UI, which ends with Python."""
    starting = begin(free_port(), home=home, ui=False)
    atexit.register(starting.end)  # not sooner: Prefect's threads send the last of the log when Python ends
    return starting


def begin(port: int, *, home: Path, ui: bool) -> Starting:
    """Starts a server and does not wait for it. ValueError if the home is no folder to write in."""
    ready(home)
    url, auth = f"http://127.0.0.1:{port}", auth_string(home)
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": "true" if ui else "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # Prefect's own default lets the pages of any site read its answers.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_API_AUTH_STRING": auth,
    }
    with (home / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.running.prefect_server", str(port), str(home), str(os.getpid())],
            env={**os.environ, **settings}, stdout=log, stderr=log, cwd=ROOT,
            start_new_session=True,  # Ctrl-C is for us: the server must still hear how the run ended
        )  # fmt: skip
    return Starting(url, home, auth, process)


def ready(home: Path) -> None:
    """Makes the home. ValueError if that, or writing in it, fails."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise Mistake(
            f"{home} is no folder to write in ({error.strerror}), and Prefect's records are to lie there; "
            "name another one in PREFECT_HOME"
        ) from error


def is_loopback(url: str) -> bool:
    """Whether it is the address of a server of ours, as `begin` would write it."""
    port = re.fullmatch(r"http://127\.0\.0\.1:([1-9][0-9]{0,4})", url)
    return port is not None and int(port[1]) <= 65_535


def is_healthy(url: str) -> bool:
    """Whether a server of Prefect's answers there, whoever's it is."""
    return _got(url, "/api/health") is not None


def is_own(url: str, auth: str) -> bool:
    """Whether the server there has proved that it has this auth string. It is not told the string."""
    nonce = secrets.token_hex(16)
    wanted = proof(auth, int(url.rpartition(":")[2]), nonce)
    return hmac.compare_digest(_got(url, f"/proof/{nonce}", timeout=5) or b"", wanted.encode())


def own_auth(url: str, home: Path) -> str | None:
    """The home's auth string, if the server there has proved that it has it too."""
    auth = auth_string(home) if is_loopback(url) else None
    return auth if auth and is_own(url, auth) else None


def _got(url: str, path: str, timeout: float = 0.9) -> bytes | None:
    """The body of a good answer; None for any other, and for none."""
    connection = HTTPConnection(url.removeprefix("http://"), timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read(1000) if answer.status == 200 else None
    except (OSError, HTTPException):
        return None
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
    raise Mistake(
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
    end_with(parent, partial(os.kill, os.getpid(), signal.SIGTERM))
    # One at a time: of two servers that both set up a new database, one fails.
    lock = os.open(home / "starting.lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    gc.disable()  # a new database takes a hundred migrations, and they a quarter less time so
    threading.Thread(target=_settle_when_healthy, args=(port, lock), daemon=True).start()
    import uvicorn.importer  # only the server's process needs it

    from pipeline.running.entrance import Entrance
    from pipeline.running.own_origin import OwnOrigin

    create_app = uvicorn.importer.import_from_string("prefect.server.api.server:create_app")
    auth = os.environ["PREFECT_SERVER_API_AUTH_STRING"]
    uvicorn.run(
        OwnOrigin(Entrance(create_app(), port, auth), port),
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


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
