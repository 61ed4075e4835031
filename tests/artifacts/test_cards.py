"""Cards say where an artifact comes from, link what can be opened, and stay readable markdown."""

import re

from artifacts import lineage_card, mermaid
from artifacts.tree import family, text_tree


def chain(publish):
    corpus = publish(metrics={"train_tokens": 1_500_000})
    monet = publish("train-monet", kind="monet", corpus=corpus, metrics={"held_out_loss_nats": 2.5})
    peer = publish(
        "distill-peer",
        {"note": "a `tick` and a ```fence```"},
        kind="peer",
        corpus=corpus,
        monet=monet,
        metrics={"held_out_loss_nats": 2.625, "kl_to_teacher_nats": 0.01},
    )
    return corpus, monet, peer


def test_the_graph_has_a_labelled_node_an_artifact_and_an_arrow_an_input(store, publish):
    corpus, monet, peer = chain(publish)
    graph = mermaid(store.ancestry(peer), peer, {corpus: "/v2/artifacts/artifact/1"})
    nodes = dict(re.findall(r'^    (n\w+)\["(.*)"\]$', graph, re.MULTILINE))
    arrows = re.findall(r"^    (n\w+) --> (n\w+)$", graph, re.MULTILINE)
    c, m, p = nodes
    assert graph.startswith("flowchart TD\n")
    assert nodes[m] == f"train-monet<br/>{monet.rpartition('-')[2]}<br/>held_out_loss_nats 2.5"
    assert sorted(arrows) == sorted([(c, m), (c, p), (m, p)])
    assert f'click {c} href "/v2/artifacts/artifact/1" "{corpus}"' in graph
    assert graph.count("click") == 1
    assert f"class {p} current" in graph


def test_attempts_of_one_recipe_are_two_nodes(store, publish):
    publish(fill=1.0), publish(fill=2.0)
    graph = mermaid(store.manifests())
    assert len(set(re.findall(r"^    (n\w+)\[", graph, re.MULTILINE))) == 2
    assert "class" not in graph


def test_an_arrow_to_an_artifact_that_is_not_shown_is_left_out(store, publish):
    *_, peer = chain(publish)
    assert "-->" not in mermaid([store.manifest(peer)], peer)


def test_a_link_cannot_break_out_of_its_quotes(store, publish):
    id = publish()
    assert 'href "/x%22y" ' in mermaid(store.manifests(), id, {id: '/x"y'})


def test_the_card_holds_facts_parents_and_the_change_of_each_shared_metric(store, publish):
    corpus, monet, peer = chain(publish)
    card = lineage_card(store.manifest(peer), store.ancestry(peer), {monet: "/v2/artifacts/artifact/2"})
    manifest = store.manifest(peer)
    assert card.startswith(f"# distill-peer · `{peer.rpartition('-')[2]}`\n")
    assert f"| sha256 of the contents | `{manifest.content_sha256}` |" in card
    assert "| commit | `c0ffee` |" in card
    assert f"| `monet` | [`{monet}`](/v2/artifacts/artifact/2) | `monet` |" in card
    assert f"| `corpus` | `{corpus}` | `corpus` |" in card
    assert "| metric | value | change from `monet` |" in card
    assert "| `held_out_loss_nats` | 2.625 | +0.125 |" in card
    assert "| `kl_to_teacher_nats` | 0.01 |  |" in card


def test_every_table_of_a_card_has_as_many_cells_in_each_row(store, publish):
    *_, peer = chain(publish)
    card = lineage_card(store.manifest(peer), store.ancestry(peer))
    tables = [block for block in card.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_a_config_with_backticks_stays_inside_its_fold(store, publish):
    *_, peer = chain(publish)
    fold = lineage_card(store.manifest(peer), store.ancestry(peer)).split("<details>")[1]
    assert re.findall(r"^````.*$", fold, re.MULTILINE) == ["````json", "````"]
    assert "a `tick` and a ```fence```" in fold


def test_the_card_of_a_root_says_so(store, publish):
    corpus = publish()
    assert "this is a root" in lineage_card(store.manifest(corpus), store.ancestry(corpus))


def test_the_card_is_the_same_text_each_time(store, publish):
    *_, peer = chain(publish)
    cards = {lineage_card(store.manifest(peer), ancestry) for ancestry in [store.ancestry(peer)] * 2}
    assert len(cards) == 1


def test_the_tree_puts_each_artifact_once_beneath_its_nearest_parent(store, publish):
    corpus, monet, peer = chain(publish)
    dense = publish("train-dense", kind="dense", corpus=corpus)
    lines = text_tree(store.manifests(), peer).splitlines()
    assert [line.split("[")[0].rstrip() for line in lines] == [
        corpus,
        f"├─ {monet}",
        f"│  └─ {peer}",
        f"└─ {dense}",
    ]
    assert lines[2].endswith(f"(also from corpus {corpus})  <-- this one")


def test_a_family_is_ancestors_and_descendants_without_siblings(store, publish):
    corpus, monet, peer = chain(publish)
    publish("train-dense", kind="dense", corpus=corpus)
    assert [m.id for m in family(monet, store.ancestry(monet), store.manifests())] == [corpus, monet, peer]
