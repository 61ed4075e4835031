"""Canonical JSON and the fingerprint taken over it; what cannot be written the same way twice is refused."""

import hashlib
import json
import math
from collections.abc import Mapping, Set
from enum import Enum
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII, no NaN.

    TypeError names the part that has no stable bytes (a set, an object, a key that is no text), ValueError
    the number that is not finite.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: object) -> str:
    """First 12 hex digits of the sha256 of the canonical JSON."""
    return sha256_of_bytes(canonical_json(value).encode())[:12]


def sha256_of_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: object, where: str = "the value") -> Json:
    """The value in JSON's own types, so that it equals what a reader gets back from the file."""
    if isinstance(value, Enum):
        return plain(value.value, where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _finite(float(value), where)
    if isinstance(value, Mapping):
        return {_key(key, where): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, BaseModel):
        return plain(_dumped(value, where), where)
    raise TypeError(
        f"{where} is a {type(value).__qualname__}, whose bytes may differ between runs; "
        "use a frozen pydantic model, an Enum, or plain JSON values"
    )


def _text(value: str, where: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TypeError(f"{where} holds half of a surrogate pair; use text that UTF-8 can hold") from None
    return text


def _finite(value: float, where: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; use a finite number or None")
    return value


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}, a {type(key).__qualname__}; JSON's keys are text, use str")
    return _text(key, where)


def _dumped(model: BaseModel, where: str) -> object:
    # In JSON mode pydantic writes a set in the order of its hashes, which differs between processes.
    _refuse_sets(model.model_dump(mode="python"), where)
    try:
        return model.model_dump(mode="json")
    except PydanticSerializationError as error:
        raise TypeError(f"{where} is a {type(model).__qualname__} that has no JSON: {error}") from None


def _refuse_sets(value: object, where: str) -> None:
    if isinstance(value, Set):
        raise TypeError(f"{where} is a set, whose order differs between runs; use a sorted tuple")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_sets(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _refuse_sets(item, f"{where}[{i}]")
