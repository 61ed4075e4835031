"""The cards of artifacts on a board such as Prefect's UI: linked to each other, pinned again where they were lost.

Which card shows which artifact stands in the store's state, since artifacts themselves never change.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from artifacts.artifact import file_damage
from artifacts.cards import Stopped, caption, lineage_card, run_card
from artifacts.errors import ArtifactError
from artifacts.fingerprint import canonical_json, sha256_of_bytes
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.regular_file import read_regular
from artifacts.scratch import locked, write_durably
from artifacts.shown_experts import FILE as EXPERTS_FILE
from artifacts.shown_experts import ShownExpert, from_json
from artifacts.store import Store

RUN_KEY = "pipeline-lineage"
MOST_BESIDE = 5
MOST_BYTES_KEPT = 2**28
"""Of the ids of cards: those of two million."""


class Board(Protocol):
    """Where cards hang. Every version of a key's card keeps its own id."""

    def pin(self, card: str, *, key: str, description: str, of_this_run: bool) -> str:
        """Hangs up one more card under this key; returns its id."""
        ...

    def rewrite(self, id: str, card: str) -> None:
        """Puts another text on a card that hangs here."""
        ...

    def count(self, ids: Collection[str]) -> int:
        """How many of these cards hang here."""
        ...

    def link(self, id: str) -> str:
        """What leads to the card from another one."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pinned:
    """A card that hangs on the board."""

    link: str
    is_new: bool


def pin_card(id: ArtifactId, store: Store, board: Board) -> Pinned:
    """Pins the card of an artifact, unless it hangs there; first those of its ancestors that are missing.

    The cards of what it was made from, and of the latest others of its stage, then name it, too.
    """
    with _Cards.of(store, board) as cards:
        for ancestor in reversed(ancestry := cards.ancestry(id)):
            if ancestor.id != id:
                cards.pin(ancestor.id, of_this_run=False)
        is_new = cards.pin(id, of_this_run=True)
        if is_new:
            for other in [*(ref.id for ref in ancestry[0].lineage.inputs.values()), *cards.beside(id)]:
                cards.rewrite(other)
        return Pinned(link=cards.links()[id], is_new=is_new)


def pin_run_card(made: Mapping[ArtifactId, str], store: Store, board: Board, *, stopped: Stopped | None = None) -> str:
    """Pins the card of a run of the chain: how it came by each artifact, and where it stopped, if it did. Its id."""
    with _Cards.of(store, board) as cards:
        manifests = {m.id: m for id in made for m in cards.ancestry(id)}
        experts = next((shown for id in made if (shown := cards.experts(id))), ())
        card = run_card(made, list(manifests.values()), cards.links(), stopped=stopped, experts=experts)
        return board.pin(card, key=RUN_KEY, description=f"{len(made)} artifacts", of_this_run=True)


def pin_all(store: Store, board: Board) -> tuple[int, int]:
    """Pins the cards that the board lacks and writes all others anew: (pinned, rewritten)."""
    with _Cards.of(store, board) as cards:
        pinned = [id for id in cards.manifests if cards.pin(id, of_this_run=False)]
        for id in cards.manifests:  # again, since now the links to what was made from each are known
            cards.rewrite(id)
        return len(pinned), len(cards.manifests) - len(pinned)


class _Kept(BaseModel):
    """Which card shows which artifact, as it lies on disk."""

    cards: dict[ArtifactId, str]
    sha256: str


class _Cards:
    """All artifacts of a store, the cards that hang on the board, and the one who may change them."""

    def __init__(self, store: Store, board: Board) -> None:
        self.store, self.board = store, board
        self.manifests = {manifest.id: manifest for manifest in store.manifests()}
        self.card_ids = _held(_read(_path(store)), board)
        self.children: dict[ArtifactId, list[Manifest]] = {}
        for manifest in self.manifests.values():
            for parent in {ref.id for ref in manifest.lineage.inputs.values()}:
                self.children.setdefault(parent, []).append(manifest)

    @classmethod
    @contextmanager
    def of(cls, store: Store, board: Board) -> Iterator["_Cards"]:
        """Alone, so that two runs on one store neither pin a card twice nor lose one's id."""
        try:
            with locked(store.state_dir / "cards.lock"):
                yield cls(store, board)
        except OSError as error:
            raise ArtifactError(
                f"could not keep the ids of cards in {store.state_dir}: {error.strerror or error}; "
                "see that the store can be written to"
            ) from error

    def ancestry(self, id: ArtifactId) -> list[Manifest]:
        """As `Store.ancestry`, but a damaged ancestor is left out: a card is no proof of soundness."""
        found: dict[ArtifactId, Manifest] = {}
        waiting = [id]
        while waiting:
            one = waiting.pop()
            if one in self.manifests and one not in found:
                found[one] = self.manifests[one]
                waiting.extend(ref.id for ref in found[one].lineage.inputs.values())
        return sorted(found.values(), key=lambda manifest: manifest.lineage.sequence, reverse=True)

    def beside(self, id: ArtifactId) -> list[ArtifactId]:
        """The latest other artifacts of the same stage, newest first."""
        stage = self.manifests[id].lineage.stage
        others = [m.id for m in self.manifests.values() if m.lineage.stage == stage and m.id != id]
        return others[: -MOST_BESIDE - 1 : -1]

    def links(self) -> dict[ArtifactId, str]:
        return {id: self.board.link(card_id) for id, card_id in self.card_ids.items()}

    def pin(self, id: ArtifactId, *, of_this_run: bool) -> bool:
        """Pins the artifact's card unless it hangs there; whether it did."""
        if id in self.card_ids:
            return False
        stage = self.manifests[id].lineage.stage
        said = caption(self.manifests[id], self.store.root.name)
        card_id = self.board.pin(self._text(id), key=stage, description=said, of_this_run=of_this_run)
        self.card_ids[id] = card_id
        _write(_path(self.store), self.card_ids)
        return True

    def rewrite(self, id: ArtifactId) -> None:
        if id in self.card_ids and id in self.manifests:
            self.board.rewrite(self.card_ids[id], self._text(id))

    def _text(self, id: ArtifactId) -> str:
        return lineage_card(
            self.manifests[id],
            self.ancestry(id),
            self.links(),
            used_by=self.children.get(id, ()),
            beside=[self.manifests[other] for other in self.beside(id)],
            plot_png=_plot(self.manifests[id], self.store.root / id),
            experts=self.experts(id),
            folder=self.store.root.absolute() / id,
        )

    def experts(self, id: ArtifactId) -> tuple[ShownExpert, ...]:
        """Some of its experts in words, where it brings any along that are as they were published."""
        manifest, folder = self.manifests.get(id), self.store.root / id
        if manifest is None or EXPERTS_FILE not in manifest.files or file_damage(manifest, folder, EXPERTS_FILE):
            return ()
        return from_json(read_regular(folder / EXPERTS_FILE))


def _plot(manifest: Manifest, folder: Path) -> bytes | None:
    """The artifact's picture, if it has one and that is as it was published."""
    name = next((name for name in sorted(manifest.files) if name.endswith(".png")), None)
    if name is None or file_damage(manifest, folder, name):
        return None
    return read_regular(folder / name)


def _held(card_ids: dict[ArtifactId, str], board: Board) -> dict[ArtifactId, str]:
    """Those that hang on the board: it may be another one, or have been emptied."""
    count = board.count(card_ids.values()) if card_ids else 0
    if count in (0, len(card_ids)):
        return card_ids if count else {}
    pairs = list(card_ids.items())
    middle = len(pairs) // 2
    return _held(dict(pairs[:middle]), board) | _held(dict(pairs[middle:]), board)


def _path(store: Store) -> Path:
    return store.state_dir / "cards.json"


def _read(path: Path) -> dict[ArtifactId, str]:
    try:
        kept = _Kept.model_validate_json(read_regular(path, MOST_BYTES_KEPT))
    except (FileNotFoundError, ValidationError):
        return {}  # the cards are pinned again: nothing is lost but their old links
    return kept.cards if kept.sha256 == _digest(kept.cards) else {}


def _write(path: Path, card_ids: dict[ArtifactId, str]) -> None:
    scratch = path.with_suffix(".partial")
    write_durably(scratch, _Kept(cards=card_ids, sha256=_digest(card_ids)).model_dump_json(indent=1).encode())
    os.replace(scratch, path)


def _digest(card_ids: Mapping[ArtifactId, str]) -> str:
    return sha256_of_bytes(canonical_json(card_ids).encode())
