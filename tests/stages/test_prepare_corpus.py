"""prepare-corpus: own text in, a corpus out, and a recipe that knows contents but not paths."""

import json

import pytest
import torch
from pydantic import ValidationError

from pipeline.stage import recipe_of
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from tests.pictures import assert_picture

WORDS = ["expert", "router", "token", "layer", "gate", "score", "neuron", "sum"]


@pytest.fixture
def sources(tmp_path):
    """Two domains: a folder of twelve files and a single text."""
    (tmp_path / "notes").mkdir()
    for i in range(12):
        text = "\n".join(" ".join(WORDS[(i * j + k) % 8] for k in range(i + 3)) for j in range(9))
        (tmp_path / "notes" / f"{i:02}.txt").write_text(text)
    (tmp_path / "play.txt").write_text("to be or not to be, that is the question\n" * 30)
    return (f"notes={tmp_path / 'notes'}", str(tmp_path / "play.txt"))


def config(sources, **changes) -> PrepareCorpusConfig:
    return PrepareCorpusConfig(sources=sources, **{"vocab_size": 300, **changes})


@pytest.mark.parametrize("tokenizer", ["bpe", "bytes"])
def test_text_becomes_a_corpus_whose_metrics_add_up(sources, tokenizer):
    output = prepare_corpus.fn(config(sources, tokenizer=tokenizer))
    corpus, metrics = output.value, output.metrics
    assert corpus.spec.domains == ("notes", "play")
    assert corpus.spec.vocab_size == (300 if tokenizer == "bpe" else 256)
    splits = corpus.train, corpus.validation, corpus.held_out
    counted = sum(int(corpus.token_bytes_V[split.tokens_N.long()].sum()) for split in splits)
    assert counted == metrics["text_bytes"] == metrics["text_bytes_notes"] + metrics["text_bytes_play"]
    assert metrics["train_tokens"] == corpus.train.num_tokens
    assert 0 < metrics["xz_held_out_bits_per_byte"] < 8
    contents = json.loads(output.files["contents.json"])
    assert sum(sum(o.values()) for s in contents.values() for o in s.values()) == metrics["text_bytes"]
    assert_picture(output.files["plot.png"])


def test_byte_tokens_of_one_file_are_its_bytes_with_the_last_tenth_held_out(tmp_path):
    data = bytes(32 + i * 7 % 90 for i in range(1237))
    (tmp_path / "input.txt").write_bytes(data)
    corpus = prepare_corpus.fn(config((str(tmp_path / "input.txt"),), tokenizer="bytes")).value
    before = [*corpus.train.tokens_N.tolist(), *corpus.validation.tokens_N.tolist()]
    assert bytes(before) == data[: int(len(data) * 0.9)]
    assert corpus.validation.num_tokens == pytest.approx(0.05 * len(data), abs=1)
    assert bytes(corpus.held_out.tokens_N.tolist()) == data[int(len(data) * 0.9) :]


def test_replaced_characters_and_rows_left_out_are_counted(tmp_path):
    lines = [f'{{"text": "text {i}"}}' for i in range(10)]
    lines[2:3] = ['{"text": "half \\ud800 a pair, and \ufffd"}', '{"text": null}', "{"]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    metrics = prepare_corpus.fn(config((str(tmp_path / "a.jsonl"),), tokenizer="bytes", unreadable="skip")).metrics
    assert metrics["replacement_characters"] == 2
    assert metrics["documents_unreadable"] == 2
    assert metrics["documents_dropped"] == 0


def test_the_same_sources_give_the_same_tensors(sources):
    outputs = [prepare_corpus.fn(config(sources)) for _ in range(2)]
    first, second = (output.value.to_tensors() for output in outputs)
    assert outputs[0].files == outputs[1].files
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_recipe_knows_the_contents_and_not_the_paths(sources, tmp_path):
    def recipe(of):
        return recipe_of(prepare_corpus, config(of), {}, seed=0)

    before = recipe(sources)
    assert "sources" not in before.config
    moved = tmp_path / "elsewhere" / "play.txt"
    moved.parent.mkdir()
    (tmp_path / "play.txt").rename(moved)
    assert recipe((sources[0], str(moved))).id == before.id
    moved.write_text("edited")
    assert recipe((sources[0], str(moved))).id != before.id


def test_every_field_says_what_it_is():
    assert all(field.description for field in PrepareCorpusConfig.model_fields.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 258},
        {"vocab_size": 65537},
        {"held_out_share": 0},
        {"validation_share": 0},
        {"held_out_share": 1},
        {"max_bytes": 1},
        {"sources": ("",)},
        {"unreadable": "guess"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        PrepareCorpusConfig(**wrong)


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValidationError, match=r"held_out_share of 0.7 and validation_share of 0.3 leave nothing"):
        PrepareCorpusConfig(held_out_share=0.7, validation_share=0.3)
    assert PrepareCorpusConfig(held_out_share=0.7, validation_share=0.29).held_out_share == 0.7
