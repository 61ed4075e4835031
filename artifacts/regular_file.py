"""Files of a store are opened only where they are files: a device or a pipe would be read, or waited for, for ever."""

import errno
import os
import stat
from io import BufferedRandom, BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """For reading. OSError if it is a folder, a device, a pipe, a socket, or a link to whatever else."""
    return os.fdopen(_descriptor(path, os.O_RDONLY), "rb")


def open_to_lock(path: Path) -> BufferedRandom:
    """The file, made if it is not there. OSError under the same conditions."""
    return os.fdopen(_descriptor(path, os.O_RDWR | os.O_CREAT), "r+b")


def _descriptor(path: Path, access: int) -> int:
    try:
        # A pipe without a writer would block, and what a link points to may lie anywhere.
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise _no_file(path) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise (
            IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            if stat.S_ISDIR(mode)
            else _no_file(path)
        )
    return descriptor


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """All of it, under the same conditions. OSError if it is of more bytes."""
    with open_regular(path) as file:
        if most_bytes is None:
            return file.read()
        raw = file.read(most_bytes + 1)
    if len(raw) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes:,} bytes", str(path))
    return raw


def _no_file(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is no regular file, and a store holds no others", str(path))
