"""Which runs have a process: each holds a lock file, and the system lets go of it however the process ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID


@contextmanager
def alive(run: str, folder: Path) -> Iterator[None]:
    """Within it, `gone` does not name this run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / run
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # shared: a run that is tried again may find its first process still ending
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def gone(folder: Path) -> list[str]:
    """The runs that began in this folder and whose process ended without a word; other files there are no runs."""
    return [path.name for path in sorted(folder.glob("*")) if _is_of_a_run(path) and not _is_held(path)]


def forget(run: str, folder: Path) -> None:
    """`gone` does not name this run any more."""
    (folder / run).unlink(missing_ok=True)


def is_uuid(text: str) -> bool:
    """Whether it is an id as Prefect gives them."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _is_of_a_run(path: Path) -> bool:
    return is_uuid(path.name) and path.is_file()


def _is_held(path: Path) -> bool:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return True  # it has just ended in good order
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
