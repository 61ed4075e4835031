"""Scratch folders and locks: how something appears in the store whole, or not at all."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.regular_file import open_to_lock

PREFIX = ".partial-"


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """An empty folder inside the store, gone at the end unless it was moved into place."""
    path = root / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    with held_folder(path):
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def held_folder(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Makes the folder and holds it alone, so that nobody takes it for garbage; says so before it waits for another.

    The system lets go of it when the process ends, however it ends. Neither a pid nor a time says as much: pids are
    others in another container on the same disk, and clocks go back.
    """
    while True:
        path.mkdir(parents=True, exist_ok=True)
        try:
            folder = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # who held it has just removed it
        try:
            if not _take(folder):
                waiting()
                fcntl.flock(folder, fcntl.LOCK_EX)
            if _lies_at(folder, path):
                yield
                return
        finally:
            os.close(folder)


def remove_unheld(path: Path) -> bool:
    """Removes a file or folder, unless somebody holds it or it is gone already."""
    if path.is_symlink():  # which nobody holds: its target is none of ours
        path.unlink(missing_ok=True)
        return True
    try:
        found = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer would block
    except FileNotFoundError:
        return False
    try:
        if not (_take(found) and _lies_at(found, path)):
            return False
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(found)
    return True


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
    with open_to_lock(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def scratch_folders(root: Path) -> list[Path]:
    """All scratch folders, those of the dead among them."""
    return sorted(root.glob(f"{PREFIX}*"))


def _take(descriptor: int) -> bool:
    """Takes the lock, unless another has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether what was opened is still what the path leads to: it may have been removed and made again."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
