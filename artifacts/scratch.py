"""Scratch folders and the lock: how something appears in the store whole, or not at all."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".partial-"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder inside the store, gone at the end unless it was moved into place."""
    path = root / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir()
    held = os.open(path, os.O_RDONLY)
    try:
        # A pid says nothing to another container on the same disk; the lock does.
        fcntl.flock(held, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(held)
        shutil.rmtree(path, ignore_errors=True)


def move_into_place(scratch: Path, final: Path) -> None:
    """Renames the folder so that it outlives a power cut, too."""
    sync_folder(scratch)
    os.rename(scratch, final)
    sync_folder(final.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable, as fsync does for a file's bytes."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file alone; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def dead_scratch_folders(root: Path) -> list[Path]:
    """Scratch folders whose owner was killed: its process is gone and nobody holds the folder's lock."""
    return [path for path in sorted(root.glob(f"{PREFIX}*")) if not _has_owner(path)]


def _has_owner(path: Path) -> bool:
    pid = path.name.removeprefix(PREFIX).split("-")[0]
    return (pid.isdigit() and _is_running(int(pid))) or _is_locked(path)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        folder = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True  # its owner has just removed it
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(folder)
    return False
