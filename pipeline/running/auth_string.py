"""The auth string of a home: what its server asks of every client, in a file that its owner alone can read.

A server proves that it has the string before anybody tells it the string: another user's program may be listening on
the port that a server has left.
"""

import fcntl
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from kernels.errors import Mistake

_FORM = re.compile(r"[A-Za-z0-9_-]{43}")


def auth_string(home: Path) -> str:
    """The home's auth string, made if there is none yet. ValueError if its file is damaged or open to others."""
    path, lock = home / "auth-string", home / "auth-string.lock"
    try:
        # A pipe would be waited for, and a link may lead anywhere.
        with open(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600), "rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)  # of two processes that both find none, one makes it
            if not os.path.lexists(path):
                _write(path, secrets.token_urlsafe(32))
    except OSError as error:
        raise Mistake(
            f"the auth string of this home cannot be made or locked ({error.strerror}); see that {home} can be written "
            f"to, delete {lock} if it is no file, or name another home in PREFECT_HOME"
        ) from error
    return _read(path)


def _write(path: Path, text: str) -> None:
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def _read(path: Path) -> str:
    remedy = f"delete {path} and end the servers of this home; the next one makes a new one"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(64) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise Mistake(f"the auth string of this home cannot be read ({error.strerror}); {remedy}") from error
    text = data.decode("latin-1").strip()
    if not _FORM.fullmatch(text):
        raise Mistake(f"the auth string of this home is damaged: wanted 43 letters, digits, - or _; {remedy}")
    if mode & 0o077:
        raise Mistake(
            f"the auth string of this home is open to other users (mode {mode & 0o777:04o}, wanted 0600); {remedy}"
        )
    return text


def proof(auth: str, port: int, nonce: str) -> str:
    """What only a holder of the string can answer; with the port in it, no other server's answer will do."""
    return hmac.new(auth.encode(), f"{port} {nonce}".encode(), "sha256").hexdigest()
