"""Cards on a board: every link leads to the card of the artifact that it names, whatever happened to the board."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field

import pytest

from artifacts import ArtifactError
from artifacts.board import RUN_KEY, pin_all, pin_card, pin_run_card
from artifacts.cards import Stopped
from artifacts.shown_experts import FILE, ShownContext, ShownExpert, from_json, to_json


@dataclass
class Wall:
    """A board that is a dict."""

    cards: dict[str, str] = field(default_factory=dict)
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    of_runs: list[str] = field(default_factory=list)
    name: str = "wall"

    def pin(self, card: str, *, key: str, description: str, of_this_run: bool) -> str:
        id = f"{self.name}-{len(self.cards)}"
        self.cards[id], self.names[id] = card, (key, description.splitlines()[0])  # the id, then what tells it apart
        if of_this_run:
            self.of_runs.append(id)
        return id

    def rewrite(self, id: str, card: str) -> None:
        assert id in self.cards
        self.cards[id] = card

    def count(self, ids: Collection[str]) -> int:
        return len(self.cards.keys() & set(ids))

    def link(self, id: str) -> str:
        return f"/cards/{id}"

    def card_of(self, artifact: str) -> str:
        (id,) = [id for id, (_, description) in self.names.items() if description == artifact]
        return self.cards[id]


def chain(publish):
    corpus = publish(metrics={"train_tokens": 1_500_000})
    monet = publish("train-monet", kind="monet", corpus=corpus)
    peer = publish("distill-peer", kind="peer", corpus=corpus, monet=monet)
    return corpus, monet, peer


def links_are_right(wall: Wall) -> bool:
    """Whether every link, in a graph or a table, is on the name of the artifact whose card it leads to."""
    found = []
    for card in wall.cards.values():
        found += re.findall(r'click \w+ href "/cards/([\w-]+)" "([\w~-]+)"', card)
        found += [(id, name) for name, id in re.findall(r"\[`([\w~-]+)`\]\(/cards/([\w-]+)\)", card)]
    return bool(found) and all(wall.names[id][1] == name for id, name in found)


def test_a_card_is_pinned_once_after_those_of_its_ancestors(store, publish):
    *_, peer = ids = chain(publish)
    wall = Wall()
    first, second = pin_card(peer, store, wall), pin_card(peer, store, wall)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.link == second.link
    assert [name for _, name in wall.names.values()] == list(ids)
    assert [key for key, _ in wall.names.values()] == ["prepare-corpus", "train-monet", "distill-peer"]
    assert wall.of_runs == [first.link.removeprefix("/cards/")]
    assert links_are_right(wall)


def test_the_parents_cards_name_a_child_as_soon_as_it_is_pinned(store, publish):
    corpus, monet, peer = chain(publish)
    wall = Wall()
    pin_card(monet, store, wall)
    pin_card(peer, store, wall)
    for parent in (corpus, monet):
        used_by = wall.card_of(parent).partition("## Used by")[2].partition("<details>")[0]
        assert re.search(rf"\[`{peer}`\]\(/cards/", used_by)
    assert "Nothing yet." in wall.card_of(peer)


def test_a_card_stands_beside_the_latest_others_of_its_stage(store, publish):
    corpus = publish()
    ids = [publish("quantize-int4", {"clips": clips}, kind="peer-int4", corpus=corpus) for clips in range(1, 9)]
    wall = Wall()
    for id in ids:
        pin_card(id, store, wall)
    beside = wall.card_of(ids[3]).partition("## Others of this stage")[2].partition("<details>")[0]
    assert re.findall(r"\[`([\w-]+)`\]", beside) == [*ids[:3:-1], ids[2]]
    assert f"| [`{ids[7]}`](/cards/{list(wall.cards)[8]}) | `config.clips 8` | loss 2.5000 nats |" in beside
    assert "## Others of this stage" not in wall.card_of(corpus)
    assert links_are_right(wall)


def test_an_emptied_board_gets_all_cards_anew_with_links_that_hold(store, publish):
    *_, peer = ids = chain(publish)
    pin_card(peer, store, Wall(name="old"))
    wall = Wall(name="new")
    assert pin_all(store, wall) == (3, 0)
    assert {name for _, name in wall.names.values()} == set(ids)
    assert "old-" not in "".join(wall.cards.values())
    assert links_are_right(wall)
    assert pin_all(store, wall) == (0, 3)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_one_lost_card_is_pinned_again_and_the_others_stay(store, publish, lost):
    *_, peer = chain(publish)
    wall = Wall()
    pin_card(peer, store, wall)
    gone = list(wall.cards)[lost]
    del wall.cards[gone], wall.names[gone]
    wall.name = "again"
    assert pin_all(store, wall) == (1, 2)
    assert links_are_right(wall)


@pytest.mark.parametrize("state", [b"", b"{", b"[1]", b'{"a": 1}'])
def test_ids_of_cards_that_cannot_be_read_are_made_anew(store, publish, state):
    id = publish()
    wall = Wall()
    pin_card(id, store, wall)
    (store.state_dir / "cards.json").write_bytes(state)
    assert pin_card(id, store, wall).is_new


def test_a_flipped_bit_in_the_ids_of_cards_never_leads_to_anothers_card(store, publish):
    corpus, monet, _ = chain(publish)  # whose cards are wall-0 and wall-1, one bit apart
    wall = Wall()
    pin_card(monet, store, wall)
    path = store.state_dir / "cards.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        for id in (corpus, monet):
            assert wall.names[pin_card(id, store, wall).link.removeprefix("/cards/")][1] == id


def test_the_card_of_a_run_says_what_was_reused_and_where_it_stopped(store, publish):
    corpus, monet, _ = chain(publish)
    wall = Wall()
    pin_card(monet, store, wall)
    stopped = Stopped(at="distill-peer", why="no | room", helps_again=True)
    pin_run_card({corpus: "reused", monet: "3.0 s"}, store, wall, stopped=stopped)
    ((key, description),) = [name for name in wall.names.values() if name[0] == RUN_KEY]
    card = wall.card_of(description)
    assert (key, description) == ("pipeline-lineage", "2 artifacts")
    assert "**Stopped** at `distill-peer`: <code>no &#124; room</code> Run the same command again to go on" in card
    assert re.search(rf"\| train-monet \| \[`{monet}`\]\(/cards/wall-1\) \| 3\.0 s \|", card)
    assert links_are_right(wall)


def test_a_run_that_made_nothing_has_a_card_that_says_so(store):
    wall = Wall()
    stopped = Stopped(at="prepare-corpus", why="there is no file 'x'", helps_again=False)
    pin_run_card({}, store, wall, stopped=stopped)
    card = wall.card_of("0 artifacts")
    assert "Nothing was made." in card
    assert "**Stopped** at `prepare-corpus`: `there is no file 'x'`\n" in card  # nor will it be found by running again


def test_a_damaged_ancestor_is_left_out_and_the_card_is_pinned(store, publish):
    corpus, monet, peer = chain(publish)
    (store.root / monet / "manifest.json").write_text("{")
    wall = Wall()
    pin_card(peer, store, wall)
    assert "not in the store" in wall.card_of(peer)
    assert corpus in wall.card_of(peer)


def test_a_plot_is_shown_only_as_it_was_published(store, circumstance, publish):
    id = publish()
    recipe = store.manifest(id).lineage.recipe.model_copy(update={"seed": 1})
    drawn = store.publish(
        recipe=recipe, kind="corpus", spec={}, tensors={}, metrics={}, files={"plot.png": b"\x89PNG..."},
        circumstance=circumstance,
    )  # fmt: skip
    wall = Wall()
    pin_card(drawn, store, wall)
    assert "data:image/png;base64,iVBORy4uLg==" in wall.card_of(drawn)
    (store.root / drawn / "plot.png").write_bytes(b"\x89PNG?..")
    pin_all(store, wall)
    assert "data:image" not in wall.card_of(drawn)


EXPERT = ShownExpert(
    layer=1, expert=5, statement="cur in {' the'}", f1=0.75, null_f1=0.02, writes="raises ' cat'; lowers ' of'",
    contexts=(ShownContext(before="under\nthe", token=" the"),),
)  # fmt: skip


def test_experts_in_words_stand_on_the_cards_of_their_model_and_of_its_run(store, circumstance, publish):
    recipe = store.manifest(publish()).lineage.recipe.model_copy(update={"stage": "distill-symbols"})
    id = store.publish(
        recipe=recipe, kind="symbols", spec={}, tensors={}, metrics={}, files={FILE: to_json([EXPERT])},
        circumstance=circumstance,
    )  # fmt: skip
    wall = Wall()
    pin_card(id, store, wall)
    pin_run_card({id: "1.0 s"}, store, wall)
    assert from_json(to_json([EXPERT])) == (EXPERT,)
    for card in (wall.card_of(id), wall.card_of("1 artifacts")):
        assert "F1 against firing in the model that was distilled, on held-out text" in card
        assert "**Block 1, expert 5** fires where `cur in {' the'}` (F1 0.75; by chance 0.02)" in card
        assert "\n* `under⏎the` **→** ` the`\n" in card or "\n* `under⏎the` **→** <code> the</code>" in card
    (store.root / id / FILE).write_bytes(to_json([]))
    pin_all(store, wall)
    assert "expert 5" not in wall.card_of(id)  # other bytes than were published


@pytest.mark.parametrize("data", [b"", b"[]", b'{"experts": 3}', b'{"experts": [{"layer": 1}]}'])
def test_a_file_of_experts_that_cannot_be_read_shows_none(data):
    assert from_json(data) == ()


def test_a_store_that_cannot_be_written_to_is_told_in_a_sentence(store, publish):
    id = publish()
    (store.state_dir / "cards.lock").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="can be written to"):
        pin_card(id, store, Wall())
