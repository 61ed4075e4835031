"""The store as a text tree: each artifact beneath the input that was made last before it."""

from collections.abc import Sequence

from artifacts.cards import headline
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.terminal import on_one_line


def text_tree(manifests: Sequence[Manifest], marked: ArtifactId | None = None) -> str:
    """One line an artifact, indented beneath its nearest parent; other parents are named on the line."""
    known = {manifest.id: manifest for manifest in sorted(manifests, key=lambda m: m.lineage.sequence)}
    beneath: dict[ArtifactId | None, list[Manifest]] = {}
    for manifest in known.values():
        beneath.setdefault(_nearest_parent(manifest, known), []).append(manifest)
    lines = []
    waiting = [(root, "", "") for root in reversed(beneath.get(None, []))]
    while waiting:  # a stack rather than recursion: a chain of experiments may be a thousand long
        manifest, branch, indent = waiting.pop()
        lines.append(branch + _line(manifest, _nearest_parent(manifest, known), marked))
        children = beneath.get(manifest.id, [])
        for child in reversed(children):
            is_last = child is children[-1]
            waiting.append((child, indent + ("└─ " if is_last else "├─ "), indent + ("   " if is_last else "│  ")))
    return "\n".join(lines)


def family(id: ArtifactId, ancestry: Sequence[Manifest], manifests: Sequence[Manifest]) -> list[Manifest]:
    """The artifact, its ancestors, and all that was made from it."""
    descendants = {id}
    for manifest in sorted(manifests, key=lambda m: m.lineage.sequence):
        if any(ref.id in descendants for ref in manifest.lineage.inputs.values()):
            descendants.add(manifest.id)
    wanted = descendants | {ancestor.id for ancestor in ancestry}
    return [manifest for manifest in manifests if manifest.id in wanted]


def _nearest_parent(manifest: Manifest, known: dict[ArtifactId, Manifest]) -> ArtifactId | None:
    # Only older ones: a damaged store may hold a circle.
    parents = [known[ref.id] for ref in manifest.lineage.inputs.values() if ref.id in known]
    older = [parent for parent in parents if parent.lineage.sequence < manifest.lineage.sequence]
    return max(older, key=lambda parent: parent.lineage.sequence).id if older else None


def _line(manifest: Manifest, parent: ArtifactId | None, marked: ArtifactId | None) -> str:
    others = [f"{on_one_line(role)} {ref.id}" for role, ref in manifest.lineage.inputs.items() if ref.id != parent]
    parts = [
        manifest.id,
        f"[{manifest.kind}]",
        headline(manifest),
        f"(also from {', '.join(others)})" if others else "",
        "<-- this one" if manifest.id == marked else "",
    ]
    return "  ".join(part for part in parts if part)
