"""What was published, by digests of the harness's own, and what a store holds against it."""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import Artifact, ArtifactError, Store

Contents = Mapping[str, str]
"""sha256 of every file but the manifest, by name."""
Ledger = dict[str, Contents]
"""By id, what was published under it."""


def contents(folder: Path) -> Contents:
    """The digests of what lies there, whatever any manifest says."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    }


def ledger_of(store: Store) -> Ledger:
    return {id: contents(store.root / id) for id in store.ids()}


@dataclass(kw_only=True, slots=True)
class Findings:
    """What is wrong with a store after a fault."""

    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)


def inspect(
    store: Store,
    findings: Findings,
    *,
    kept: Iterable[str],
    known: Iterable[Ledger],
    damaged: Set[str] = frozenset(),
    when: str,
) -> None:
    """All `kept` must be there; what opens must be in one of `known`; `damaged` alone fails, and verify names it."""
    kept, known = set(kept), list(known)
    ids = set(store.ids())
    findings.lost += [f"{id} is gone {when}" for id in kept if id not in ids]
    refused = set()
    for id in sorted(ids):
        opened = _opened(store, id)
        if opened is None:
            refused.add(id)
        elif contents(opened.path) not in [ledger.get(id) for ledger in known]:
            findings.corrupt.append(f"{id} was opened {when} with bytes that nobody published")
    findings.lost += [f"{id} cannot be opened {when}" for id in sorted((refused - damaged) & kept)]
    half = sorted(refused - damaged - kept)
    findings.expect(not half, f"half an artifact is visible {when}: {half}")
    named = {damage.id for damage in store.verify()}
    findings.expect(named == damaged & ids, f"verify names {sorted(named)} {when}, damaged are {sorted(damaged & ids)}")
    numbers = [manifest.lineage.sequence for manifest in store.manifests() if manifest.id not in damaged]
    findings.expect(len(set(numbers)) == len(numbers), f"two artifacts have one sequence number {when}")


def _opened(store: Store, id: str) -> Artifact | None:
    try:
        return store.open(id)
    except ArtifactError:
        return None


def wrongs(store: Store, *, kept: Ledger) -> list[str]:
    """What is wrong with a store where nothing runs, nothing is unfinished and garbage has been collected."""
    found = [*store.root.glob(".partial-*"), *(store.state_dir / "checkpoints").glob("*")]
    said = [f"collecting garbage left {path.relative_to(store.root)}" for path in sorted(found)]
    held = ledger_of(store)
    return said + [f"collecting garbage changed {id}" for id in kept if held.get(id) != kept[id]]


def lock_is_free(store: Store) -> bool:
    path = store.state_dir / "lock"
    if not path.is_file():
        return True
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
