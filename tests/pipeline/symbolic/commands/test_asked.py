"""The model that a command is about: which one is 'latest', and a store that is not there."""

import pytest

from artifacts import ArtifactError, Circumstance, Recipe, Store
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.commands.asked import open_asked
from tests.tiny import JUMP, tiny_corpus, tiny_model
from tests.tiny_symbols import symbols_model

CONFIG = {"training": {"context_length": 19}}


def publish(store, stage, value, config=CONFIG, **inputs):
    return store.publish(
        recipe=Recipe(stage=stage, stage_version=1, config=config, seed=0, inputs=inputs),
        kind=value.kind, spec=value.spec.model_dump(mode="json"), tensors=value.to_tensors(), metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )  # fmt: skip


def test_the_latest_is_of_symbols_where_there_are_any_and_else_any_model(store):
    corpus = publish(store, "prepare-corpus", tiny_corpus(), {})
    peer = tiny_model(JUMP, vocab_size=256)
    older, newer = (publish(store, stage, peer, corpus=corpus) for stage in ("distill-peer", "quantize-int8"))
    publish(store, "prepare-more", tiny_corpus(), {})  # the newest of all is no model
    assert open_asked(store, "latest").id == newer
    assert open_asked(store, older).id == older
    symbols = publish(store, "distill-symbols", symbols_model(), corpus=corpus)
    newest = publish(store, "grow-int4", peer, corpus=corpus)
    opened = open_asked(store, "latest")
    assert (opened.id, opened.context) == (symbols, 19)
    assert open_asked(store, newest).id == newest


def test_a_store_without_a_model_is_told(store):
    publish(store, "prepare-corpus", tiny_corpus(), {})
    with pytest.raises(ArtifactError):
        open_asked(store, "latest")


@pytest.mark.parametrize(
    "words",
    [
        ("find", "latest", "--token", "e"),
        ("read", "latest", "--text", "a"),
        ("show", "latest"),
        ("ablate", "latest", "--layer", "0", "--expert", "0"),
        ("kan", "latest", "--layer", "0", "--expert", "0", "--to", "x"),
        ("export", "latest", "--to", "x"),
        ("find", "peer-123", "--token", "e"),
    ],
    ids=" ".join,
)
def test_a_store_that_is_not_there_is_told(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--store", "none"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "there is no store at none; name its folder with --store\n")
    assert [*tmp_path.iterdir()] == []


def test_a_missing_store_is_no_folder_afterwards(tmp_path):
    with pytest.raises(ArtifactError, match="there is no store at"):
        open_asked(Store(tmp_path / "none"), "latest")
    assert not (tmp_path / "none").exists()
