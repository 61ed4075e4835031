"""Cards say where an artifact comes from, link what can be opened, and stay readable markdown."""

import re
from pathlib import Path

from artifacts import lineage_card, mermaid
from artifacts.cards import brief, caption, failure_card
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
    corpus, _, peer = chain(publish)
    graph = mermaid(store.ancestry(peer), peer, {corpus: "/v2/artifacts/artifact/1"})
    nodes = dict(re.findall(r'^    (n\w+)\["(.*)"\]$', graph, re.MULTILINE))
    arrows = re.findall(r"^    (n\w+) --> (n\w+)$", graph, re.MULTILINE)
    c, m, p = nodes
    assert graph.splitlines()[1] == "flowchart TD"
    assert nodes[c] == "prepare-corpus<br/>1,500,000 train tokens"
    assert nodes[m] == "train-monet<br/>loss 2.5000 nats"
    assert sorted(arrows) == sorted([(c, m), (c, p), (m, p)])
    assert f'click {c} href "/v2/artifacts/artifact/1" "{corpus}"' in graph
    assert graph.count("click") == 1
    assert f"class {p} current" in graph


def test_attempts_of_one_recipe_are_two_nodes(store, publish):
    publish(fill=1.0), publish(fill=2.0)
    graph = mermaid(store.manifests())
    assert len(set(re.findall(r"^    (n\w+)\[", graph, re.MULTILINE))) == 2
    assert len(set(re.findall(r'^    n\w+\["(.*)"\]', graph, re.MULTILINE))) == 2  # told apart by their digits
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
    assert "| metric | value | change from `monet` | meaning |" in card
    assert "| `held_out_loss_nats` | 2.625 | +0.125 | mean cross-entropy of a held-out token, nats |" in card
    assert "| `kl_to_teacher_nats` | 0.01 |  | mean KL(parent \\|\\| this) over held-out tokens, nats |" in card


def test_what_is_asked_first_stands_above_the_graph(store, publish):
    corpus = publish(
        metrics={"train_tokens": 1_500_000, "held_out_tokens": 9e4, "text_bytes_prose": 300, "text_bytes_code": 100}
    )
    metrics = {"held_out_loss_nats": 2.625, "loss_increase_nats": 0.0213}
    peer = publish("distill-peer", kind="peer", corpus=corpus, metrics=metrics)
    of_corpus, of_peer = (lineage_card(store.manifest(id), store.ancestry(id)) for id in (corpus, peer))
    (head, _, row), size = of_corpus.split("\n\n")[1].splitlines(), store.manifest(corpus).bytes
    assert head == "| train tokens | held-out tokens | domains | size | took |"
    assert row == f"| 1,500,000 | 90,000 | `prose` 75%, `code` 25% | {size} B | 1.5 s |"
    assert of_peer.split("\n\n")[1].splitlines()[0] == "| loss, nats a token | Δ to its parent | size | took |"
    assert of_peer.split("\n\n")[1].splitlines()[2].startswith("| **2.6250** | +0.0213 | ")
    assert of_peer.index("2.6250") < of_peer.index("```mermaid") < of_peer.index("held_out_loss_nats")


def test_a_failed_run_says_its_sentence_before_the_traceback():
    card = failure_card("got `3`\nand | 4", "Traceback\n```\n  File")
    assert card.splitlines()[2] == "<code>got &#96;3&#96;&#10;and &#124; 4</code>"
    assert card.endswith("<summary>Traceback</summary>\n\n````text\nTraceback\n```\n  File\n````\n\n</details>\n")


def test_a_run_is_told_apart_by_loss_seed_steps_corpus_and_store(store, publish):
    corpus = publish()
    monet = publish("train-monet", {"training": {"steps": 1500}}, kind="monet", corpus=corpus)
    digits = corpus.rpartition("-")[2][:8]
    said = {"loss": "2.5000", "seed": "0", "steps": "1,500", "corpus": digits, "store": "store"}
    assert brief(store.manifest(monet), "store") == said
    assert caption(store.manifest(monet), "store").split("\n\n") == [
        monet, "loss 2.5000 · seed 0 · steps 1,500", f"corpus {digits} · store store",
    ]  # fmt: skip


def test_a_card_has_the_commands_that_open_the_artifact(store, publish):
    symbols = publish("distill-symbols", kind="symbols")
    folder = Path("/data/a store") / symbols
    manifest = store.manifest(symbols)
    files = {**manifest.files, "symbols.html": manifest.files["tokenizer.json"]}
    card = lineage_card(manifest.model_copy(update={"files": files}), [], folder=folder)
    (block,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    assert block.splitlines() == [
        f"python -m webbrowser file:///data/a%20store/{symbols}/symbols.html",
        f"python -m pipeline.symbolic show {symbols} --store '/data/a store'",
        f"python -m pipeline.generate {symbols} --prompt 'def ' --store '/data/a store'",
        f"python -m artifacts --store '/data/a store' show {symbols}",
    ]


def test_every_table_of_a_card_has_as_many_cells_in_each_row(store, publish):
    *_, peer = chain(publish)
    card = lineage_card(store.manifest(peer), store.ancestry(peer))
    tables = [block for block in card.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    cells = [{line.replace("\\|", "").count("|") for line in table.splitlines()} for table in tables]
    assert all(len(counts) == 1 for counts in cells)


def test_a_config_with_backticks_stays_inside_its_fold(store, publish):
    *_, peer = chain(publish)
    fold = lineage_card(store.manifest(peer), store.ancestry(peer)).split("<details>")[3]
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
