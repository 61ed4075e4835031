"""The manifest of an artifact: what it is, what made it, and the digest of every byte of it."""

import json
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from artifacts.errors import ArtifactError
from artifacts.fingerprint import canonical_json, sha256_of_bytes
from artifacts.lineage import ID, SHA256, SLUG, ArtifactId, Lineage

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FORMAT = 1
MOST_BYTES = 16 * 2**20
"""Of a manifest: a thousand times those of the chain. All of a store are read for a listing."""
LARGEST = 1e100
"""Of a metric: what is computed of a few, a variance among it, is finite, too."""

Metric = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=SHA256, description="Digest of the file's bytes.")
    bytes: int = Field(ge=0, lt=2**63, description="Size of the file in bytes.")


FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
"""Of a file in an artifact's folder: it lies in that folder, and is one that any system takes."""


def _plain_name(name: str) -> str:
    if ".." in name or name == MANIFEST:
        raise ValueError(f"{name!r} is no file that was published with it")
    return name


_FileName = Annotated[str, Field(pattern=FILE_NAME), AfterValidator(_plain_name)]


def _with_weights(files: dict[str, FileRecord]) -> dict[str, FileRecord]:
    if WEIGHTS not in files:
        raise ValueError(f"{WEIGHTS} is not among them, so that nothing says which tensors were published")
    return files


class Manifest(BaseModel):
    """Everything about an artifact but its tensors and files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = Field(default=FORMAT, description="Version of this record's layout.")
    id: ArtifactId = Field(pattern=ID, description="Stage and recipe, with the attempt from the second on.")
    kind: str = Field(pattern=SLUG, description="Slug of what rebuilds the value, such as peer-int4.")
    spec: dict[str, Any] = Field(description="With the tensors and files, all that rebuilds the value.")
    metrics: dict[str, Metric] = Field(description="What was measured, by name with its unit.")
    lineage: Lineage = Field(description="What made the artifact.")
    files: Annotated[dict[_FileName, FileRecord], AfterValidator(_with_weights)] = Field(
        description="Every file but this one, by name."
    )
    content_sha256: str = Field(pattern=SHA256, description="Digest over the digests of the files.")
    digest: str = Field(pattern=SHA256, description="Digest over all the rest of this record.")

    @classmethod
    def describe(
        cls,
        *,
        id: ArtifactId,
        kind: str,
        spec: dict[str, Any],
        metrics: dict[str, float],
        lineage: Lineage,
        files: dict[str, FileRecord],
    ) -> Self:
        """The manifest of these files, with its two digests."""
        content = sha256_of_bytes(canonical_json({name: file.sha256 for name, file in files.items()}).encode())
        draft = cls(
            id=id,
            kind=kind,
            spec=spec,
            metrics=metrics,
            lineage=lineage,
            files=files,
            content_sha256=content,
            digest="0" * 64,
        )
        return draft.model_copy(update={"digest": _digest(draft.model_dump(mode="json"))})

    @property
    def short(self) -> str:
        """The id without the stage: the fingerprint, and the attempt from the second on."""
        return self.id.removeprefix(f"{self.lineage.stage}-")

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(file.bytes for file in self.files.values())

    def to_json(self) -> str:
        """As it lies on disk."""
        return json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_manifest(raw: bytes, id: ArtifactId) -> Manifest:
    """The manifest in this JSON, its form checked but not its digest: quick enough for a whole store."""
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ArtifactError(f"{id}: {MANIFEST} is no manifest: {_first(error)}") from None
    if manifest.id != id:
        raise ArtifactError(f"{id}: {MANIFEST} describes {manifest.id!r}; was the folder renamed or copied?")
    return manifest


def checked_manifest(raw: bytes, id: ArtifactId) -> Manifest:
    """The manifest in this JSON, which must be exactly what was published."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{id}: {MANIFEST} is damaged, it is not JSON ({error})") from None
    if isinstance(record, dict) and record.get("format_version", FORMAT) != FORMAT:
        found = record["format_version"]
        raise ArtifactError(
            f"{id}: {MANIFEST} has format {found!r}, this code reads format {FORMAT}; use matching code"
        )
    manifest = parse_manifest(raw, id)
    if not _is_intact(record):
        raise ArtifactError(
            f"{id}: {MANIFEST} is damaged, its contents do not give the digest it states; make the artifact again"
        )
    return manifest


def check_metrics(metrics: Mapping[str, float]) -> None:
    """ArtifactError names the metric that is not finite, or too large to be one."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ArtifactError(f"metric {name!r} is {float(value)}; publish finite metrics only, or leave it out")
        if abs(value) > LARGEST:
            raise ArtifactError(f"metric {name!r} is {float(value)}, beyond {LARGEST:g}; publish it in another unit")


def check_file_name(name: str) -> None:
    """ArtifactError unless a file of this name can lie in an artifact's folder, on any system."""
    if not re.fullmatch(FILE_NAME, name) or ".." in name:
        raise ArtifactError(
            f"{name!r} cannot be the name of a file in an artifact; "
            "use at most 128 letters, digits, '.', '_', '-', beginning with a letter or digit"
        )
    if name in (MANIFEST, WEIGHTS):
        raise ArtifactError(f"{name!r} is written by the store itself; give the file another name")


def _digest(record: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in record.items() if name != "digest"}
    return sha256_of_bytes(canonical_json(rest).encode())


def _is_intact(record: dict[str, Any]) -> bool:
    try:
        return record["digest"] == _digest(record)
    except (TypeError, ValueError):  # what canonical JSON refuses was never published
        return False


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
