"""Artifacts as another writer leaves them: changed, and sealed anew with digests that fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts import canonical_json


def reseal(folder: Path, change: Callable[[dict[str, Any]], object] = lambda record: None) -> None:
    """Gives the manifest the digests of the files as they lie there, then this change, then its own digest."""
    path = folder / "manifest.json"
    record = json.loads(path.read_bytes())
    for file in folder.iterdir():
        if file.name in record["files"] and file.is_file() and not file.is_symlink():
            raw = file.read_bytes()
            record["files"][file.name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    change(record)
    path.write_text(json.dumps(with_digests(record), indent=2))


def with_digests(record: dict[str, Any]) -> dict[str, Any]:
    """The same, with digests that fit what it says, as far as it says anything that has one."""
    files = record.get("files")
    if isinstance(files, dict) and all(isinstance(file, dict) for file in files.values()):
        record["content_sha256"] = _digest({name: file.get("sha256") for name, file in files.items()})
    return {**record, "digest": _digest({name: value for name, value in record.items() if name != "digest"})}


def _digest(value: object) -> str:
    try:
        text = canonical_json(value)
    except (TypeError, ValueError, RecursionError):  # what has no canonical form has no digest either
        text = json.dumps(value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
