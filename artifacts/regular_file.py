"""Files of artifacts are opened only where they are files: a device or a pipe would be read for ever."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: Path) -> BufferedReader:
    """For reading. OSError if it is a folder, a device, a pipe, a socket, or a link to whatever else."""
    try:
        # A pipe without a writer would block, and what a link points to may lie anywhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All of it, under the same conditions."""
    with open_regular(path) as file:
        return file.read()


def _no_file(path: Path) -> OSError:
    return OSError(errno.EINVAL, "it is no regular file, and artifacts hold no others", str(path))
