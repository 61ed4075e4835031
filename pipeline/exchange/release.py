"""A folder as the Hub lays one out: its config, its tokenizer, and where each tensor lies. Nothing is loaded yet."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import ArtifactError, canonical_json, sha256_of_bytes, sha256_of_file
from artifacts.foreign_tensors import INDEX, WHOLE, Stored, stored_in
from kernels.errors import Failure, Mistake
from pipeline.corpus.text_files import user_path

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
BESIDE = (TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
"""What is taken over as it is, where it is there."""
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A folder whose files are all there."""

    folder: Path
    config_json: bytes
    """config.json as it is."""
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    beside: Mapping[str, bytes]
    """The files about tokens."""

    @property
    def sha256(self) -> Mapping[str, str]:
        """Of every file that is read, by name."""
        files = {CONFIG, *self.beside, *(stored.file.name for stored in self.tensors.values())}
        return {name: sha256_of_file(self.folder / name) for name in sorted(files)}


def release_in(source: str) -> Release:
    """What a folder, or `hf:NAME` of the Hub, holds. Mistake in a sentence where something of it is missing."""
    folder = _folder(source)
    return Release(
        folder=folder,
        config=_json(folder / CONFIG),
        config_json=(folder / CONFIG).read_bytes(),
        tensors=_tensors(folder),
        beside={name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()},
    )


def digest_of(source: str) -> str:
    """sha256 over those of all files that are read."""
    return sha256_of_bytes(canonical_json(release_in(source).sha256).encode())


def _folder(source: str) -> Path:
    if not source:
        raise Mistake("no source was named; give the folder of a checkpoint, or hf:NAME, with --config.source")
    if source.startswith("hf:"):
        return _fetched(source.removeprefix("hf:"))
    folder = user_path(source)
    if not folder.is_dir():
        raise Mistake(f"source: there is no folder {source[:400]!r}; name that of a checkpoint, or hf:NAME of the Hub")
    return folder


def _fetched(name: str) -> Path:
    """The snapshot of a model of the Hub: from its cache where there is no network."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise Mistake(f"'hf:{name}' needs the package `huggingface_hub`; run: pip install -e '.[hf]'") from error
    name, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=[CONFIG, INDEX, "*.safetensors", *BESIDE]
            )
        )
    except huggingface_hub.errors.HFValidationError:
        raise Mistake(f"'hf:{name}' is no name of a model; wanted hf:NAME or hf:OWNER/NAME") from None
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise Failure(
            f"'hf:{name}' cannot be reached ({type(error).__name__}); check its name and the network, or name a folder"
        ) from error


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Mistake(f"there is no {file.name} in {file.parent}; name the folder of a whole checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Mistake(f"{file} cannot be read as JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise Mistake(f"{file} is no JSON object; copy it again")
    return found


def _tensors(folder: Path) -> dict[str, Stored]:
    if (folder / INDEX).is_file():
        return _indexed(folder)
    if (folder / WHOLE).is_file():
        return stored(folder / WHOLE)
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        raise Mistake(
            f"{folder} has {pickles[0]} and no {WHOLE}: a pickle can run code, so that it is not opened; write the "
            "weights as safetensors"
        )
    raise Mistake(f"there is neither {WHOLE} nor {INDEX} in {folder}; name the folder of a whole checkpoint")


def _indexed(folder: Path) -> dict[str, Stored]:
    """Every tensor where the index says. What lies beside it in a shard is in the index too, or nothing is read."""
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise Mistake(f"{folder / INDEX} has no weight_map of tensors to files; copy it again")
    found: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        if not _SHARD.fullmatch(file) or ".." in file:
            raise Mistake(f"{INDEX} names the file {file[:200]!r}; wanted plain names of .safetensors in its folder")
        if not (folder / file).is_file():
            raise Mistake(f"{INDEX} names {file}, which is not in {folder}; copy the missing shard")
        found |= {name: it for name, it in stored(folder / file).items() if places.get(name) == file}
    for name, file in places.items():
        if name not in found:
            raise Mistake(f"{INDEX} has the tensor {name[:200]!r} in {file}, which does not hold it; copy both again")
    return found


def weights_in(source: str) -> dict[str, Stored]:
    """What a file of safetensors holds, or all of those in a folder. Mistake where there is none, or a name twice."""
    path = user_path(source) if source else None
    if path is None or not path.exists():
        raise Mistake(f"source: there is no {source[:400]!r}; name a file of safetensors, or a folder of them")
    found: dict[str, Stored] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        for name, it in stored(file).items():
            if name in found:
                raise Mistake(f"{file.name} and {found[name].file.name} both hold {name[:200]!r}; keep one of them")
            found[name] = it
    if not found:
        raise Mistake(f"there is no file of safetensors in {path}, which a pickle is not; write the state dict as one")
    return found


def digest_of_weights(source: str) -> str:
    """sha256 over those of the files, whatever they are called."""
    files = sorted({stored.file for stored in weights_in(source).values()})
    return sha256_of_bytes(canonical_json([sha256_of_file(file) for file in files]).encode())


def stored(file: Path) -> dict[str, Stored]:
    """What a file of safetensors holds. Mistake where it is none."""
    try:
        return stored_in(file)
    except ArtifactError as error:
        raise Mistake(str(error)) from None
