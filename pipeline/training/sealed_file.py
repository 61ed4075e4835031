"""What torch saves, behind the sha256 of its bytes: replaced whole, and refused when damaged.

torch.load alone takes a flipped bit for a weight: it does not read the checksums of its own format.
"""

import hashlib
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from artifacts import ArtifactError
from artifacts.regular_file import open_regular
from artifacts.scratch import sync_folder

_UNREADABLE = (
    UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, struct.error,
)  # fmt: skip
"""What torch.load raises of bytes that torch.save has not written, which another writer may have sealed."""
_DIGEST_BYTES = hashlib.sha256().digest_size


def save_sealed(state: Mapping[str, Any], path: Path) -> None:
    """Replaces the file, down to the disk; until that is done the one before it stays. ArtifactError if it stays."""
    scratch = path.with_suffix(".partial")
    try:
        with scratch.open("w+b") as file:
            file.write(bytes(_DIGEST_BYTES))
            torch.save(state, file)
            digest = _digest_of_rest(file, path)
            file.seek(0)
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch's writer, stopped by the disk, raises an error of its own on its way out.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, OSError):
            raise
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise ArtifactError(
            f"could not save the checkpoint {path}: {cause.strerror or cause}; "
            "see that there is room and that it can be written to, and run again"
        ) from error


def load_sealed(path: Path) -> dict[str, Any]:
    """What was saved, on the CPU. ArtifactError unless every byte is as it was, and a mapping by name."""
    try:
        with open_regular(path) as file:
            stated = file.read(_DIGEST_BYTES)
            if stated != _digest_of_rest(file, path):
                raise unusable(path, "is damaged, its bytes do not give the digest it states")
            file.seek(_DIGEST_BYTES)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unusable(path, f"cannot be read ({error.strerror})") from None
    except _UNREADABLE:
        raise unusable(path, "is sealed, but not what this code saves") from None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise unusable(path, f"is sealed, but holds {type(state).__name__} and no values by name")
    return state


def unusable(path: Path, problem: str) -> ArtifactError:
    """The error of a checkpoint that nothing can go on from."""
    return ArtifactError(f"the checkpoint {path} {problem}; remove it, or use --force, to begin anew")


def _digest_of_rest(file: BufferedIOBase, path: Path) -> bytes:
    """Of all bytes after the digest, and of whose they are: a checkpoint of another run is refused, too."""
    file.seek(_DIGEST_BYTES)
    return hashlib.file_digest(file, partial(hashlib.sha256, f"{path.parent.name}/{path.name}".encode())).digest()
