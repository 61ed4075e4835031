"""Mutations of an artifact's folder: of a tensor, a field, a file's bytes or a file itself, each made by a seed."""

import json
import math
import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.tensors_file import RECIPE, read_header, read_tensors, write_tensors
from tests.foreign import reseal

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
_EVIL = "\x1b[31m\u202e\n"
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(2**63), 1.5, -0.0, 1e308, math.nan, math.inf, "", "x",
    "nan", _EVIL, "../../etc/passwd", "/dev/zero", "\ud800", "x" * 100_000, [], {}, [[]], {"": 1}, [1, 2],
    {"a": {"b": 3}},
)  # fmt: skip
_NUMBERS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    7.0,
    255.0,
    -128.0,
    1e-40,
    1e-6,
    1e6,
    1e30,
    3e38,
    -3e38,
    math.nan,
    math.inf,
    -math.inf,
)
_DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8,
    torch.bool, torch.uint16,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """What a mutation changes: a tensor, a path in a JSON file, the bytes of a file, or a file among the others."""

    what: str
    file: str
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        return f"{self.what} {'.'.join(map(str, self.path)) or self.file}"


def targets_of(folder: Path) -> list[Target]:
    """Everything in this artifact that a mutation may change."""
    found = [Target("tensor", WEIGHTS, (name,)) for name in sorted(read_tensors(folder / WEIGHTS))]
    for path in sorted(folder.iterdir()):
        if path.suffix == ".json":
            found += [Target("field", path.name, place) for place in _places(json.loads(path.read_bytes()))]
        found += [Target("bytes", path.name), Target("file", path.name)]
    return found


def _places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Of all that stands in a JSON value; of a long list or vocabulary the first few."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:40]:
        yield from _places(item, (*path, key))


def mutate(folder: Path, target: Target, generator: random.Random) -> str:
    """Changes it, and half of the time seals the artifact anew as its writer would. Says what was done."""
    sealed = generator.random() < 0.5
    if target.file == MANIFEST and target.what == "field":
        said, change = _edit_of(target.path, generator)
        if sealed:
            reseal(folder, change)
        else:
            _edit_file(folder / MANIFEST, change)
    else:
        said = _CHANGES[target.what](folder / target.file, target.path, generator)
        if sealed and (folder / MANIFEST).is_file() and not (folder / MANIFEST).is_symlink():
            _seal(folder)
    return f"{target}: {said}{', sealed anew' if sealed else ''}"


def _seal(folder: Path) -> None:
    try:
        reseal(folder)
    except (ValueError, TypeError, KeyError, AttributeError):  # a manifest that its own writer could not seal
        return


def _edit_of(path: tuple[str | int, ...], generator: random.Random) -> tuple[str, Callable[[Any], object]]:
    """A change of what stands at this path."""
    kind = generator.choice(("put", "put", "put", "near", "drop", "rename", "wrap", "deep", "add"))
    value, factor = generator.choice(_VALUES), generator.choice((-1, 0, 0.5, 2, 3, 10**6))
    depth, step, name = (
        generator.choice((90, 150, 600)),
        generator.choice((-1, 1)),
        generator.choice(("x", "", _EVIL, "../x", "layer")),
    )

    def change(record: Any) -> None:
        place = record
        for key in path[:-1]:
            place = place[key]
        last, old = path[-1], place[path[-1]]
        if kind == "drop":
            del place[last]
        elif kind == "rename" and isinstance(place, dict):
            place[name] = place.pop(last)
        elif kind == "wrap":
            place[last] = generator.choice(([old], {"x": old}))
        elif kind == "deep":
            place[last] = json.loads("[" * depth + "]" * depth)
        elif kind == "add" and isinstance(old, dict | list):
            old.append(value) if isinstance(old, list) else old.update({name: value})
        elif kind == "near" and type(old) in (int, float):
            place[last] = old + step if step > 0 else type(old)(old * factor)
        else:
            place[last] = value

    return f"{kind} {str(value)[:40]!r}", change


def _edit_file(path: Path, change: Callable[[Any], object]) -> None:
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record, indent=2))


def _of_field(path: Path, place: tuple[str | int, ...], generator: random.Random) -> str:
    said, change = _edit_of(place, generator)
    _edit_file(path, change)
    return said


def _of_bytes(path: Path, place: tuple[str | int, ...], generator: random.Random) -> str:
    raw = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little") if path.name == WEIGHTS else len(raw)
    at = generator.randrange(max(1, generator.choice((min(16, len(raw)), min(header, len(raw)), len(raw)))))
    kind = generator.choice(("flip", "flip", "digit", "cut", "insert", "remove", "length"))
    if kind == "flip" and raw:
        raw[at] ^= 1 << generator.randrange(8)
    elif kind == "digit":
        digits = [i for i in range(min(header, len(raw))) if 0x30 <= raw[i] <= 0x39]
        at = generator.choice(digits or [0])
        raw[at : at + 1] = generator.choice((b"9", b"0", b"-1", b"1e9", b"99999999999999999999"))
    elif kind == "cut":
        del raw[at:]
    elif kind == "length" and path.name == WEIGHTS:
        raw[:8] = struct.pack("<Q", generator.choice((0, 1, header, header - 9, 2**32, 2**63, 2**64 - 1)))
    elif kind == "remove":
        del raw[at : at + generator.randrange(1, 9)]
    else:
        raw[at:at] = generator.randbytes(generator.randrange(1, 9))
    path.write_bytes(raw)
    return f"{kind} at {at}"


def _of_file(path: Path, place: tuple[str | int, ...], generator: random.Random) -> str:
    kind = generator.choice(("gone", "empty", "folder", "pipe", "link to /dev/zero", "link to itself", "garbage"))
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind.startswith("link"):
        path.symlink_to("/dev/zero" if "zero" in kind else path.name)
    elif kind == "garbage":
        path.write_bytes(generator.randbytes(999))
    return kind


def _of_tensor(path: Path, place: tuple[str | int, ...], generator: random.Random) -> str:
    tensors = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    kind = generator.choice(tuple(_TENSORS))
    _TENSORS[kind](tensors, str(place[0]), generator)
    recipe = read_header(path)["__metadata__"][RECIPE]
    write_tensors(path, tensors, recipe=recipe)
    return kind


def _put_one(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    flat = tensors[name].view(-1)
    if len(flat):
        flat[generator.randrange(len(flat))] = _number(flat.dtype, generator)


def _fill(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    tensors[name].fill_(_number(tensors[name].dtype, generator))


def _number(dtype: torch.dtype, generator: random.Random) -> float:
    """One that this dtype holds, of those that are special to somebody."""
    if dtype.is_floating_point:
        most, is_finite = torch.finfo(dtype).max, generator.random() < 0.5
        number = generator.choice(_NUMBERS)
        return max(-most, min(most, number)) if is_finite else number
    if dtype == torch.bool:
        return generator.random() < 0.5
    held = torch.iinfo(dtype)
    return generator.choice((held.min, held.max, 0, 1, 2, held.max // 2, max(held.min, -1), 8, 0x80 % held.max))


def _flip(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    """A bit of one entry."""
    raw = bytearray(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if raw:
        raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        tensors[name] = torch.frombuffer(raw, dtype=torch.uint8).view(tensors[name].dtype).reshape(tensors[name].shape)


def _scale(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    if tensors[name].is_floating_point():
        tensors[name] *= generator.choice((-1.0, 0.0, 1e-3, 1e3, 1e10))
    else:
        _noise(tensors, name, generator)


def _noise(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    """Every byte anew; of floats most are then odd, and of bools none holds."""
    count = tensors[name].numel() * tensors[name].element_size()
    raw = bytearray(generator.randbytes(count))
    if raw:
        tensors[name] = torch.frombuffer(raw, dtype=torch.uint8).view(tensors[name].dtype).reshape(tensors[name].shape)


def _reverse(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    tensors[name] = torch.from_numpy(tensors[name].numpy().reshape(-1)[::-1].copy()).reshape(tensors[name].shape)


def _swap_two(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    flat = tensors[name].view(-1)
    if len(flat) > 1:
        i, j = generator.sample(range(len(flat)), 2)
        flat[i], flat[j] = flat[j].clone(), flat[i].clone()


def _cast(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    tensors[name] = tensors[name].to(generator.choice(_DTYPES))


def _reshape(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    tensor = tensors[name]
    tensors[name] = generator.choice(
        (tensor[None], tensor.reshape(-1), tensor.transpose(0, -1) if tensor.ndim else tensor, tensor.reshape(-1)[:0],
         tensor[:-1] if tensor.ndim else tensor[None], torch.cat([tensor, tensor]) if tensor.ndim else tensor[None],
         tensor.new_zeros(()))
    )  # fmt: skip


def _drop(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    del tensors[name]


def _rename(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    tensors[generator.choice((_EVIL, "", "x", name + ".x", name[:-1]))] = tensors.pop(name)


def _exchange(tensors: dict[str, Tensor], name: str, generator: random.Random) -> None:
    """With another tensor, most often one of the same shape."""
    alike = [other for other in tensors if tensors[other].shape == tensors[name].shape]
    other = generator.choice(sorted(alike if generator.random() < 0.8 else tensors))
    tensors[name], tensors[other] = tensors[other], tensors[name]


_TENSORS: dict[str, Callable[[dict[str, Tensor], str, random.Random], None]] = {
    "put one": _put_one,
    "put another": _put_one,
    "fill": _fill,
    "flip a bit": _flip,
    "flip another": _flip,
    "scale": _scale,
    "noise": _noise,
    "reverse": _reverse,
    "swap two": _swap_two,
    "cast": _cast,
    "reshape": _reshape,
    "drop": _drop,
    "rename": _rename,
    "exchange": _exchange,
}
_CHANGES: dict[str, Callable[[Path, tuple[str | int, ...], random.Random], str]] = {
    "tensor": _of_tensor,
    "field": _of_field,
    "bytes": _of_bytes,
    "file": _of_file,
}
