"""What is wrong in a store: every damaged artifact by name, to the end of the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.artifact import damaged_files, read_manifest
from artifacts.errors import ArtifactError
from artifacts.fingerprint import canonical_json
from artifacts.lineage import ArtifactId
from artifacts.manifest import MANIFEST, WEIGHTS, Manifest
from artifacts.tensors_file import RECIPE, read_header


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One thing that is wrong with one artifact."""

    id: str
    what: str


def damages(root: Path, ids: Sequence[ArtifactId]) -> list[Damage]:
    """All that is wrong with these artifacts: manifests, files, tensors, and what they say of parents."""
    intact: dict[ArtifactId, Manifest] = {}
    found: list[Damage] = []
    for id in ids:
        try:
            intact[id] = read_manifest(root / id)
        except ArtifactError as error:
            found.append(Damage(id=id, what=str(error).removeprefix(f"{id}: ")))
    for id, manifest in intact.items():
        wrong = [*_damage_of_folder(manifest, root / id), *_damage_of_parents(manifest, intact, ids)]
        if (root / id).is_dir():  # else somebody has removed it meanwhile
            found.extend(Damage(id=id, what=what) for what in wrong)
    return sorted(found, key=lambda damage: damage.id)


def _damage_of_folder(manifest: Manifest, folder: Path) -> Iterator[str]:
    yield from damaged_files(manifest, folder)
    for path in sorted(folder.glob("*")):  # of a folder that has just been removed there is none
        if path.name not in manifest.files and path.name != MANIFEST:
            yield f"{path.name} was never published with it"
    if (folder / WEIGHTS).is_file():
        yield from _damage_of_header(manifest, folder / WEIGHTS)


def _damage_of_header(manifest: Manifest, weights: Path) -> Iterator[str]:
    try:
        metadata = read_header(weights).get("__metadata__")
    except (ArtifactError, OSError) as error:
        yield str(error).removesuffix("; make the artifact again")
        return
    if metadata != {RECIPE: canonical_json(manifest.lineage.recipe)}:
        yield f"{WEIGHTS} holds the recipe of something else"


def _damage_of_parents(
    manifest: Manifest, intact: dict[ArtifactId, Manifest], ids: Sequence[ArtifactId]
) -> Iterator[str]:
    for role, ref in manifest.lineage.inputs.items():
        if ref.id in intact and intact[ref.id].content_sha256 != ref.sha256:
            yield f"its input {role!r}, {ref.id}, no longer has the contents that it was made from"
        elif ref.id not in intact and ref.id not in ids:
            yield f"its input {role!r}, {ref.id}, is missing"
        elif ref.id not in intact:
            yield f"its input {role!r}, {ref.id}, has a damaged manifest"
