"""What an artifact was made from, as far as the store still holds it."""

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.artifact import read_manifest
from artifacts.errors import ArtifactError
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.store import Store
from artifacts.verification import Damage


@dataclass(frozen=True, kw_only=True, slots=True)
class Ancestry:
    """The ancestors that can be read, newest first, and a word on each that cannot."""

    manifests: list[Manifest]
    missing: list[Damage]


def known_ancestry(store: Store, ids: Sequence[ArtifactId]) -> Ancestry:
    """These artifacts and all that they were made from. Above one that is missing nothing is known."""
    known: dict[ArtifactId, Manifest] = {}
    missing: dict[ArtifactId, Damage] = {}
    waiting = list(ids)
    while waiting:
        id = waiting.pop()
        if id in known or id in missing:
            continue
        try:
            known[id] = read_manifest(store.root / id)
        except ArtifactError as error:
            what = str(error).removeprefix(f"{id}: ") if (store.root / id).is_dir() else "it is not in the store"
            missing[id] = Damage(id=id, what=what)
        else:
            waiting.extend(ref.id for ref in known[id].lineage.inputs.values())
    newest_first = sorted(known.values(), key=lambda manifest: manifest.lineage.sequence, reverse=True)
    return Ancestry(manifests=newest_first, missing=sorted(missing.values(), key=lambda damage: damage.id))
