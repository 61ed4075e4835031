"""One artifact: its folder, checked against its manifest."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import ArtifactError
from artifacts.lineage import ArtifactId, Lineage
from artifacts.manifest import MANIFEST, MOST_BYTES, WEIGHTS, Manifest, checked_manifest
from artifacts.regular_file import open_regular, read_regular
from artifacts.tensors_file import read_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """An opened artifact: its record is here, its tensors and files are read when asked for."""

    manifest: Manifest
    path: Path

    @property
    def id(self) -> ArtifactId:
        return self.manifest.id

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.manifest.spec

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.manifest.metrics

    @property
    def lineage(self) -> Lineage:
        return self.manifest.lineage

    def tensors(self, device: "str | torch.device" = "cpu") -> "dict[str, torch.Tensor]":
        """The tensors by name; on the CPU they are memory-mapped until used."""
        return read_tensors(self.path / WEIGHTS, device)

    def files(self) -> dict[str, Path]:
        """The named files beside the tensors."""
        return {name: self.path / name for name in self.manifest.files if name != WEIGHTS}


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder, its digest checked."""
    try:
        raw = read_regular(folder / MANIFEST, MOST_BYTES)
    except OSError as error:
        raise ArtifactError(f"{folder.name}: {MANIFEST} cannot be read ({error.strerror})") from error
    return checked_manifest(raw, ArtifactId(folder.name))


def check_files(manifest: Manifest, folder: Path) -> None:
    """ArtifactError unless every byte that the manifest names is there as it was published."""
    for damage in damaged_files(manifest, folder):
        raise ArtifactError(f"{manifest.id}: {damage}; make the artifact again")


def damaged_files(manifest: Manifest, folder: Path) -> Iterator[str]:
    """A phrase for each file that is missing or not the one that was published."""
    for name in manifest.files:
        damage = file_damage(manifest, folder, name)
        if damage:
            yield damage


def file_damage(manifest: Manifest, folder: Path, name: str) -> str | None:
    """What is wrong with this file, or None."""
    wanted = manifest.files[name]
    try:
        with open_regular(folder / name) as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.file_digest(file, "sha256").hexdigest() if size == wanted.bytes else None
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    if found is None:
        return f"{name} is damaged, it has {size} bytes and {wanted.bytes} were published"
    if found != wanted.sha256:
        return f"{name} is damaged, its sha256 is {found[:12]}... and {wanted.sha256[:12]}... was published"
    return None
