"""weights.safetensors: tensors and the recipe in one file, written bit for bit the same each time.

torch is loaded where tensors are read or written: who reads manifests alone does not wait for it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from artifacts.errors import ArtifactError
from artifacts.regular_file import open_regular

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RECIPE = "recipe"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", *, recipe: str) -> None:
    """Writes the tensors down to the disk, the recipe's canonical JSON as the only metadata."""
    from safetensors.torch import save_file

    if "__metadata__" in tensors:
        raise ArtifactError("'__metadata__' cannot be the name of a tensor in safetensors; rename it")
    try:
        # Exactly one key: safetensors writes two in the random order of a hash map.
        save_file(_owned(tensors), path, metadata={RECIPE: recipe})
    except SafetensorError as error:
        raise _os_error(error) or ArtifactError(f"could not write {path.name}: {error}") from error
    except KeyError as error:
        raise ArtifactError(f"safetensors cannot hold {error.args[0]}; convert or pack it first") from None
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"safetensors cannot hold these tensors: {error}") from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path, device: "str | torch.device" = "cpu") -> "dict[str, Tensor]":
    """The tensors of the file; on the CPU memory-mapped and private: writing to them never changes it."""
    from safetensors.torch import load_file

    read_header(path)
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise ArtifactError(f"{path} is damaged: {error}; make the artifact again") from error


def read_header(path: Path) -> dict[str, Any]:
    """The header's JSON. Refuses what safetensors would let pass: a tensor named twice."""
    try:
        raw = _header_bytes(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror})") from error
    try:
        header = json.loads(raw, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: its header is unusable, {error}; make the artifact again") from None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} is damaged: its header is no JSON object; make the artifact again")
    return header


def _header_bytes(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise ArtifactError(
                f"{path} is damaged: it states a header of {length} bytes, where its {size} bytes allow "
                f"at most {max(0, min(size - 8, MAX_HEADER_BYTES))}; make the artifact again"
            )
        return file.read(length)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name!r} stands in it twice")
        found[name] = value
    return found


def _owned(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Contiguous tensors, no two in the same memory: safetensors refuses others."""
    import torch

    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided:
            raise ArtifactError(f"tensor {name!r} has layout {tensor.layout}; make it dense with to_dense()")
        tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        owned[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return owned


def _os_error(error: SafetensorError) -> OSError | None:
    """The system's error inside a safetensors error, so that a full disk is one kind of exception."""
    code = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(code[1]), os.strerror(int(code[1]))) if code else None
