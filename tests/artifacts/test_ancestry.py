"""Ancestors are read as far as there are any, and those that are gone are named."""

import shutil

from artifacts.ancestry import known_ancestry


def chain(publish):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    return corpus, monet, publish("distill-peer", kind="peer", corpus=corpus, monet=monet)


def test_a_whole_ancestry_is_that_of_the_store(store, publish):
    *_, peer = chain(publish)
    found = known_ancestry(store, [peer])
    assert (found.manifests, found.missing) == (store.ancestry(peer), [])


def test_an_ancestor_that_was_removed_is_named_and_the_others_are_read(store, publish):
    corpus, monet, peer = chain(publish)
    shutil.rmtree(store.root / monet)
    found = known_ancestry(store, [peer])
    assert [manifest.id for manifest in found.manifests] == [peer, corpus]
    assert [(damage.id, damage.what) for damage in found.missing] == [(monet, "it is not in the store")]


def test_a_second_attempt_does_not_stand_in_for_the_first(store, publish):
    corpus, monet, peer = chain(publish)
    publish("train-monet", kind="monet", fill=2.0, corpus=corpus)
    shutil.rmtree(store.root / monet)
    assert [damage.id for damage in known_ancestry(store, [peer]).missing] == [monet]


def test_a_damaged_ancestor_is_named_with_its_damage(store, publish):
    corpus, _, peer = chain(publish)
    (store.root / corpus / "manifest.json").write_text("{")
    (damage,) = known_ancestry(store, [peer]).missing
    assert damage.id == corpus
    assert damage.what.startswith("manifest.json is damaged")
