"""A corpus is restored only if its tensors and its tokenizer are what `prepare-corpus` writes; else one sentence."""

import json

import pytest
import torch

from artifacts import ArtifactError
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import BpeTokenizer, ByteTokenizer
from tests.tiny import TEXT, tiny_corpus

BPE = BpeTokenizer.train([TEXT], vocab_size=270)
FORM = json.loads(BPE.to_files()["tokenizer.json"])


@pytest.fixture(scope="module")
def bpe():
    split = make_split([(0, TEXT), (1, ""), (1, TEXT)], BPE)
    spec = CorpusSpec(tokenizer="bpe", vocab_size=270, domains=("farm", "barn"))
    return Corpus(spec, train=split, validation=split, held_out=split, tokenizer=BPE)


def restored(corpus, tmp_path, *, tensors=None, files=None, **spec):
    """From what lies on the disk, with other parts where given; a part that is None is missing."""
    paths = {}
    for name, data in {**corpus.to_files(), **(files or {})}.items():
        if data is not None:
            paths[name] = tmp_path / name
            paths[name].write_bytes(data)
    held = {name: tensor for name, tensor in {**corpus.to_tensors(), **(tensors or {})}.items() if tensor is not None}
    return Corpus.restore("corpus", {**corpus.spec.model_dump(mode="json"), **spec}, held, paths)


def test_what_was_written_comes_back(bpe, tmp_path):
    back = restored(bpe, tmp_path)
    assert all(torch.equal(got, bpe.to_tensors()[name]) for name, got in back.to_tensors().items())
    assert back.tokenizer.to_files() == bpe.to_files()
    assert back.tokenizer.encode(TEXT) == BPE.encode(TEXT)


def test_a_corpus_without_validation_comes_back_with_none_of_it(bpe, tmp_path):
    gone = {f"validation.{part}": None for part in ("tokens", "document_start", "document_domain")}
    assert restored(bpe, tmp_path, tensors=gone).validation.num_tokens == 0


def changed(name, at, value):
    """The corpus's own tensor with another value in one place."""

    def of(corpus):
        row = corpus.to_tensors()[name].numpy().copy()
        row[at] = value
        return {name: torch.from_numpy(row)}

    return of


def row(name, make):
    return lambda corpus: {name: make(corpus.to_tensors()[name])}


TENSORS = {
    "a tensor is missing": (
        row("train.tokens", lambda tensor: None),
        r"'train\.tokens' is none, where a corpus of this version has a row of torch\.uint16",
    ),
    "a part of validation is missing": (
        row("validation.tokens", lambda tensor: None), r"'validation\.tokens' is none"
    ),
    "token_bytes is missing": (row("token_bytes", lambda tensor: None), "'token_bytes' is none"),
    "a tensor too many": (lambda corpus: {"extra": torch.zeros(3)}, r"'extra' is a row of .* where .* none"),
    "float tokens": (row("train.tokens", torch.Tensor.float), r"'train\.tokens' is a row of torch\.float32, where"),
    "tokens of two axes": (row("train.tokens", lambda tensor: tensor[None]), r"'train\.tokens' is \(1, \d+\), where"),
    "starts of int32": (row("held_out.document_start", torch.Tensor.int), "'held_out.document_start' is a row of"),
    "a token beyond the vocabulary": (
        changed("held_out.tokens", 5, 270), r"'held_out\.tokens' holds 270 at 5; it takes numbers below 270"
    ),
    "the largest token": (changed("train.tokens", -1, 65535), r"'train\.tokens' holds 65535 at \d+; it takes"),
    "a domain out of range": (
        changed("train.document_domain", 1, 2), r"'train\.document_domain' holds 2 at 1; it takes numbers below 2"
    ),
    "a first start above 0": (changed("train.document_start", 0, 1), "holds 1 at 0; it takes numbers that rise from 0"),
    "a negative start": (changed("train.document_start", 1, -1), "holds -1 at 1; it takes"),
    "starts reversed": (row("train.document_start", lambda tensor: tensor.flip(0)), r"holds \d+ at 0; it takes"),
    "a start of 10^12": (changed("train.document_start", 2, 10**12), "holds 1000000000000 at 2; it takes"),
    "the least start": (changed("train.document_start", 2, -(2**63)), "holds -9223372036854775808 at 2; it takes"),
    "domains of fewer documents": (
        row("train.document_domain", lambda tensor: tensor[1:]), "'train' has 3 documents, but 2 domains"
    ),
    "tokens of no document": (
        lambda corpus: {
            "train.document_start": torch.zeros(0, dtype=torch.int64),
            "train.document_domain": torch.zeros(0, dtype=torch.uint8),
        },
        r"'train' has \d+ tokens in no document",
    ),
    "bytes of other tokens": (changed("token_bytes", 3, 7), "does not say how many bytes its tokenizer's 270 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_a_wrong_tensor_is_refused_in_one_sentence(what, bpe, tmp_path):
    change, message = TENSORS[what]
    with pytest.raises(ArtifactError, match=message) as refused:
        restored(bpe, tmp_path, tensors=change(bpe))
    assert "\n" not in str(refused.value)


def edited(**changes):
    return json.dumps({**FORM, **changes}).encode()


def of_model(**changes):
    return edited(model={**FORM["model"], **changes})


SPLIT = {"type": "Split", "pattern": {"Regex": "(?<=x{0,100000}"}, "behavior": "Removed", "invert": False}
VOCAB = FORM["model"]["vocab"]
TOKENIZERS = {
    "missing": (None, r"has no tokenizer\.json, and its spec"),
    "empty": (b"", "is no JSON in UTF-8"),
    "no JSON": (b"{", "is no JSON in UTF-8"),
    "not UTF-8": (b'{"\xff": 1}', "is no JSON in UTF-8"),
    "nested": (b"[" * 200_000, "is no JSON in UTF-8"),
    "a list": (b"[]", "it has no model"),
    "no model": (edited(model=None), "it has no model"),
    "no vocabulary": (of_model(vocab=None), "its model has no vocabulary and merges"),
    "a token outside the alphabet": (
        of_model(vocab={**VOCAB, "\u2603": 270}), "'\u2603' in its vocabulary is outside the alphabet"
    ),
    "an empty token": (of_model(vocab={**VOCAB, "": 270}), "'' in its vocabulary is outside the alphabet"),
    "half a character": (of_model(vocab={**VOCAB, "\ud800": 270}), r"'\\ud800' in its vocabulary is outside"),
    "a byte without a token": (
        of_model(vocab={"%%" if name == "%" else name: token for name, token in VOCAB.items()}),
        "'%', a byte, is not in its vocabulary",
    ),
    "a number left out": (of_model(vocab={**VOCAB, "%%": 2**40}), "not numbered from 0 on, each once"),
    "a number twice": (of_model(vocab={**VOCAB, "%%": 7}), "not numbered from 0 on, each once"),
    "a number that is none": (of_model(vocab={**VOCAB, "%%": "x"}), "not numbered from 0 on, each once"),
    "merges of unknown tokens": (of_model(merges=[["zz", "qq"]]), r'the merge \["zz", "qq"\] speaks of tokens'),
    "a merge of three": (of_model(merges=[["t", "h", "e"]]), "is no pair"),
    "dropout": (of_model(dropout=0.5), "its model's 'dropout' is 0.5, not null"),
    "a regex that panics": (edited(pre_tokenizer=SPLIT), "its 'pre_tokenizer' is .*, not .*ByteLevel"),
    "no pre-tokenizer": (edited(pre_tokenizer=None), "its 'pre_tokenizer' is null, not"),
    "a normalizer": (edited(normalizer={"type": "NFKC"}), "its 'normalizer' is"),
    "truncation": (edited(truncation={"max_length": 3}), "its 'truncation' is"),
    "more added tokens": (edited(added_tokens=[*FORM["added_tokens"]] * 2), "its 'added_tokens' is"),
    "a field of another version": (edited(later=True), "its 'later' is true, not null"),
}  # fmt: skip


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_wrong_tokenizer_is_refused_in_one_sentence(what, bpe, tmp_path):
    raw, message = TOKENIZERS[what]
    with pytest.raises(ArtifactError, match=message) as refused:
        restored(bpe, tmp_path, files={"tokenizer.json": raw})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "raw",
    [
        of_model(merges=[" ".join(pair) for pair in FORM["model"]["merges"]]),
        of_model(dropout=0),
        json.dumps({name: value for name, value in FORM.items() if value}).encode(),
    ],
)
def test_a_tokenizer_as_other_versions_write_it_encodes_alike(raw, bpe, tmp_path):
    back = restored(bpe, tmp_path, files={"tokenizer.json": raw})
    assert back.tokenizer.encode(TEXT) == BPE.encode(TEXT)


def test_a_vocabulary_of_another_size_than_the_specs_is_refused(bpe, tmp_path):
    with pytest.raises(ArtifactError, match="its spec has vocab_size=271, its tokenizer 270 tokens"):
        restored(bpe, tmp_path, vocab_size=271)
    with pytest.raises(ArtifactError, match="its spec has vocab_size=300, its tokenizer 256 tokens"):
        restored(tiny_corpus(3), tmp_path, vocab_size=300)
    with pytest.raises(ArtifactError, match=r"'train\.tokens' holds 256 at 0; it takes numbers below 256"):
        restored(tiny_corpus(20), tmp_path, tensors=changed("train.tokens", 0, 256)(tiny_corpus(20)))
    assert isinstance(restored(tiny_corpus(20), tmp_path).tokenizer, ByteTokenizer)
