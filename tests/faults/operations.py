"""Every file operation under one folder, numbered in the order in which they happen; at one of them, a fault."""

import builtins
import errno
import fcntl
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError

import pipeline.training.loop

T = TypeVar("T")


class Fault(Enum):
    KILL_BEFORE = "killed before"
    KILL_AFTER = "killed after"
    KILL_WITHIN = "killed half way through"
    FULL = "disk full from"
    BROKEN = "I/O error at"
    READ_ONLY = "read-only from"
    REFUSED = "no permission at"


KILLS = (Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_WITHIN)
_CODES = {
    Fault.FULL: errno.ENOSPC,
    Fault.BROKEN: errno.EIO,
    Fault.READ_ONLY: errno.EROFS,
    Fault.REFUSED: errno.EACCES,
}
STEP = "training step"
_WRITES = frozenset({"write", "native write"})
_CHANGES_NAMES = frozenset({"open to write", "native write", "mkdir", "rename", "unlink", "rmdir"})
_NEEDS_ROOM = frozenset({"open to write", "native write", "mkdir", "rename", "write", "flush", "fsync", "close"})


def _strikes(fault: Fault, name: str) -> bool:
    """Whether a disk, or a kill, can do this to such an operation."""
    if fault is Fault.KILL_WITHIN:
        return name in _WRITES
    if fault in KILLS:
        return True
    if fault is Fault.FULL:
        return name in _NEEDS_ROOM
    return name in _CHANGES_NAMES if fault in (Fault.READ_ONLY, Fault.REFUSED) else name != STEP


@dataclass(frozen=True, slots=True)
class Point:
    """One operation: where in the order it stands, what it is, and what on."""

    number: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.number}: {self.name} {self.path}"


def faults_at(point: Point) -> list[Fault]:
    return [fault for fault in Fault if _strikes(fault, point.name)]


def thinned(points: Sequence[Point]) -> list[Point]:
    """Of many writes into one file the first, the middle and the last, and everything else."""
    kept: list[Point] = []
    for (name, _), group in groupby(points, key=lambda point: (point.name, point.path)):
        run = list(group)
        kept += [run[i] for i in sorted({0, len(run) // 2, len(run) - 1})] if name == "write" else run
    return kept


@dataclass(slots=True)
class Operations:
    """Watches what this process does to the files under `root`, and strikes at one point of it.

    For a child that ends afterwards: what `install` replaces is never put back.
    """

    root: Path
    at: Point | None = None
    fault: Fault | None = None
    is_alone: bool = True
    """Other processes may lead this one another way: then the point's number alone counts."""
    reads: bool = False
    """Whether opening a file to read it is a point as well."""
    pause: Callable[[], object] = lambda: None
    """Done at the point, before the fault."""
    seen: list[Point] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Changes of files that went past the numbering: what the injector must learn to see."""
    struck: bool = False
    _inside: int = 0

    def install(self) -> None:
        """From here on every operation is numbered."""
        sys.addaudithook(self._audit)
        for name in ("mkdir", "rmdir", "unlink", "remove", "truncate", "utime", "chmod"):
            self._replace(os, name, {"remove": "unlink"}.get(name, name))
        for name in ("rename", "replace", "link", "symlink"):
            self._replace(os, name, "rename", target=1)
        self._replace(os, "fsync", "fsync")
        self._replace(fcntl, "flock", "flock")
        self._replace(pipeline.training.loop, "random_windows", STEP, target=None)
        self._replace_open()
        self._replace_native(safetensors.torch, "save_file", _safetensors_error)
        self._replace_torch_save()

    def _replace(self, module: Any, attribute: str, name: str, target: int | None = 0) -> None:
        original = getattr(module, attribute)

        def watched(*args: Any, **named: Any) -> Any:
            path = self.root if target is None else _path(args[target], named.get("dir_fd"))
            return self._meet(name, path, lambda: original(*args, **named))

        setattr(module, attribute, watched)

    def _replace_open(self) -> None:
        open_file, open_descriptor = io.open, os.open

        def watched(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
            if isinstance(file, int) or not self._is_ours(_path(file)):
                return open_file(file, mode, *args, **named)
            if not set(mode) & set("wxa+"):
                read = partial(open_file, file, mode, *args, **named)
                return self._meet("open to read", _path(file), read) if self.reads else read()
            opened = self._meet("open to write", _path(file), lambda: open_file(file, mode, *args, **named))
            return _File(opened, _path(file), self)

        def watched_descriptor(path: Any, flags: int, *args: Any, **named: Any) -> int:
            opened = partial(open_descriptor, path, flags, *args, **named)
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return self._meet("open to write", _path(path, named.get("dir_fd")), opened)
            if not self.reads and os.path.isfile(path):  # folders are opened to be made durable
                return opened()
            return self._meet("open to read", _path(path, named.get("dir_fd")), opened)

        builtins.open = io.open = watched
        os.open = watched_descriptor

    def _replace_native(self, module: Any, attribute: str, as_error: Callable[[OSError], Exception]) -> None:
        """A writer that is not Python: it goes wrong as a whole, with half of its file on the disk."""
        original = getattr(module, attribute)

        def watched(value: Any, file: Any, *args: Any, **named: Any) -> Any:
            if not isinstance(file, str | os.PathLike):
                return original(value, file, *args, **named)
            path = Path(file)

            def half() -> None:
                original(value, file, *args, **named)
                os.truncate(path, path.stat().st_size // 2)

            try:
                return self._meet("native write", path, lambda: original(value, file, *args, **named), half)
            except OSError as error:
                raise as_error(error) from None

        setattr(module, attribute, watched)

    def _replace_torch_save(self) -> None:
        self._replace_native(torch, "save", lambda error: RuntimeError(f"PytorchStreamWriter failed: {error.strerror}"))

    def _meet(self, name: str, path: Path, do: Callable[[], T], half: Callable[[], object] | None = None) -> T:
        """Does the operation, unless this is the point where it goes wrong."""
        if not self._is_ours(path) or self._inside:
            return do()
        self._inside += 1
        try:
            point = Point(len(self.seen), name, self._shown(path))
            self.seen.append(point)
            if self.at is not None and point.number == self.at.number:
                assert point == self.at or not self.is_alone, f"this run came to {point}, the dry run to {self.at}"
                self.pause()
                self._strike(half)
            elif self.struck and self._lasts(name):
                raise self._error(path)
            return do()
        finally:
            self._inside -= 1
            if self.struck and self.fault is Fault.KILL_AFTER:
                _die()

    def _strike(self, half: Callable[[], object] | None) -> None:
        self.struck = True
        if self.fault is Fault.KILL_BEFORE:
            _die()
        if self.fault in (Fault.KILL_WITHIN, Fault.FULL) and half is not None:
            half()
        if self.fault is Fault.KILL_WITHIN:
            _die()
        if self.fault is not Fault.KILL_AFTER:
            raise self._error(self.root)

    def _lasts(self, name: str) -> bool:
        """A full disk stays full, and what turned read-only stays so, when the program cleans up as well."""
        return self.fault in (Fault.FULL, Fault.READ_ONLY) and _strikes(self.fault, name)

    def _error(self, path: Path) -> OSError:
        assert self.fault is not None
        code = _CODES[self.fault]
        return OSError(code, os.strerror(code), str(path))

    def _is_ours(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def _shown(self, path: Path) -> str:
        """The path in the store, without what differs between runs."""
        return re.sub(r"\.partial-\d+-[0-9a-f]+", ".partial", str(path.relative_to(self.root)))

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self._inside or event not in _CHANGES:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        if not isinstance(args[0], int) and self._is_ours(Path(os.fsdecode(args[0]))):
            self.missed.append(f"{event} {args[0]}")


_CHANGES = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime"}
)


class _File:
    """A file that was opened to be written."""

    def __init__(self, file: Any, path: Path, operations: Operations) -> None:
        self._file, self._path, self._operations = file, path, operations

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        return self._operations._meet("write", self._path, lambda: self._file.write(data), half)

    def flush(self) -> None:
        self._operations._meet("flush", self._path, self._file.flush)

    def close(self) -> None:
        if not self._file.closed:
            try:
                self._operations._meet("close", self._path, self._file.close)
            finally:
                with suppress(OSError):
                    self._file.close()

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _path(target: Any, folder: int | None = None) -> Path:
    """What a path, a descriptor, or a name in an open folder stands for."""
    if isinstance(target, int):
        return Path(os.readlink(f"/proc/self/fd/{target}"))
    if hasattr(target, "fileno"):
        return _path(target.fileno())
    path = Path(os.fsdecode(target))
    return _path(folder) / path if folder is not None else path.absolute()


def _safetensors_error(error: OSError) -> SafetensorError:
    """As safetensors 0.8 words it."""
    return SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error {error.errno})")


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive after SIGKILL")
