"""Files of safetensors that others wrote, or will read: what they hold, tensor by tensor, and folders of shards."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from artifacts.errors import ArtifactError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as its file's header describes it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """In the words of safetensors: F32, BF16..."""


def stored_in(file: Path) -> dict[str, Stored]:
    """What a file of safetensors holds, by name; reads its header alone. ArtifactError where it is none."""
    with _opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
        return {name: Stored(file, tuple(it.get_shape()), it.get_dtype()) for name, it in slices.items()}


def read_stored(name: str, stored: Stored, dtype: torch.dtype) -> Tensor:
    """The tensor in memory of its own, in this dtype.

    The file is opened for this tensor alone: its mapped pages go with it, so that reading a model of many tensors one
    by one takes no more memory than they are put into.
    """
    with _opened(stored.file) as tensors:
        return tensors.get_tensor(name).to(dtype, copy=True)


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{file} is no file of safetensors that can be read ({error}); write it with "
            "safetensors.torch.save_file, or copy it again"
        ) from None


def write_shards(folder: Path, tensors: Mapping[str, Tensor], most_bytes: int) -> list[str]:
    """Writes the tensors as the Hub lays them out: one file, or shards of at most so many bytes and their index.

    Returns the names of the files. A tensor that is larger than a shard may be has one of its own.
    """
    shards = _shares(tensors, most_bytes)
    if len(shards) == 1:
        names = [WHOLE]
    else:
        names = [f"model-{at:05}-of-{len(shards):05}.safetensors" for at in range(1, len(shards) + 1)]
    for file, share in zip(names, shards, strict=True):
        # transformers refuses files that do not say which framework wrote them.
        save_file({name: tensors[name].contiguous() for name in share}, folder / file, metadata={"format": "pt"})
        _sync(folder / file)
    if len(shards) == 1:
        return names
    place = {name: file for file, share in zip(names, shards, strict=True) for name in share}
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(place.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*names, INDEX]


def _shares(tensors: Mapping[str, Tensor], most_bytes: int) -> Sequence[Sequence[str]]:
    shares: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shares[-1] and size + tensor.nbytes > most_bytes:
            shares.append([])
            size = 0
        shares[-1].append(name)
        size += tensor.nbytes
    return shares


def _sync(file: Path) -> None:
    with file.open("rb") as written:
        os.fsync(written.fileno())
