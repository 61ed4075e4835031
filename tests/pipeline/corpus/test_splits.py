"""Windows lie within their split, targets are the next tokens, every token knows its document and domain."""

import pytest
import torch

from pipeline.corpus.splits import Corpus, CorpusSpec, Split, make_split
from pipeline.corpus.tokenizer import BpeTokenizer, ByteTokenizer
from pipeline.corpus.windows import held_out_windows, random_windows, target_positions

DOCUMENTS = [(0, "a first document, of the first domain"), (2, "second"), (1, ""), (0, "the last of them ü")]
BPE = BpeTokenizer.train([text for _, text in DOCUMENTS], vocab_size=280)


def counting_split(num_tokens: int) -> Split:
    """Token i is i: what a window holds says where it is."""
    return Split(
        tokens_N=torch.arange(num_tokens).to(torch.uint16),
        document_start_D=torch.tensor([0, 5, 11]),
        document_domain_D=torch.tensor([1, 0, 2], dtype=torch.uint8),
    )


def test_random_windows_lie_in_the_split_and_targets_are_the_next_tokens():
    inputs_BT, targets_BT = random_windows(
        counting_split(41), batch=300, length=7, generator=torch.Generator().manual_seed(0)
    )
    assert inputs_BT.shape == targets_BT.shape == (300, 7)
    assert inputs_BT.dtype == targets_BT.dtype == torch.int64
    assert torch.equal(targets_BT, inputs_BT + 1)
    assert inputs_BT.diff(dim=1).eq(1).all()
    assert (inputs_BT.min(), targets_BT.max()) == (0, 40)


def test_random_windows_repeat_with_their_generator():
    draws = [
        random_windows(counting_split(41), batch=3, length=7, generator=torch.Generator().manual_seed(5))[0]
        for _ in range(2)
    ]
    assert torch.equal(*draws)


def test_ids_above_the_int16_range_survive():
    split = counting_split(65_536)
    assert split.tokens_at(torch.tensor([[65_535, 40_000]])).tolist() == [[65_535, 40_000]]


@pytest.mark.parametrize("num_tokens", [None, 7, 20, 10_000])
def test_held_out_windows_do_not_overlap_and_span_the_split(num_tokens):
    inputs_WT, targets_WT = held_out_windows(counting_split(73), num_tokens=num_tokens, length=7)
    assert torch.equal(targets_WT, inputs_WT + 1)
    assert len(inputs_WT.unique()) == inputs_WT.numel()
    assert targets_WT.max() <= 72
    assert len(inputs_WT) == {None: 10, 7: 1, 20: 2, 10_000: 10}[num_tokens]
    if num_tokens == 20:
        assert inputs_WT[:, 0].tolist() == [0, 35]


def test_target_positions_say_where_the_targets_stand():
    split = counting_split(29)
    _, targets_WT = held_out_windows(split, num_tokens=None, length=3)
    positions_WT = target_positions(split, num_tokens=None, length=3)
    assert torch.equal(targets_WT, positions_WT)
    assert split.domain_of(positions_WT).shape == positions_WT.shape


def test_a_split_too_small_for_a_window_says_what_to_do():
    with pytest.raises(ValueError, match=r"a split of 7 tokens holds no window of 7 .* use a shorter window"):
        random_windows(counting_split(7), batch=1, length=7, generator=torch.Generator())
    with pytest.raises(ValueError, match="give the corpus more text"):
        held_out_windows(counting_split(7), num_tokens=None, length=9)


def test_every_position_knows_its_document_and_domain():
    split = counting_split(13)
    positions = torch.tensor([0, 4, 5, 10, 11, 12])
    assert split.document_of(positions).tolist() == [0, 0, 1, 1, 2, 2]
    assert split.domain_of(positions).tolist() == [1, 1, 0, 0, 2, 2]


@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer()], ids=["bpe", "bytes"])
def test_the_bytes_of_a_splits_tokens_sum_to_the_bytes_of_its_text(tokenizer):
    split = make_split(DOCUMENTS, tokenizer)
    corpus = Corpus(spec_of(tokenizer), train=split, validation=split, held_out=split, tokenizer=tokenizer)
    assert corpus.token_bytes_V.dtype == torch.int32
    assert corpus.token_bytes_V[split.tokens_N.long()].sum() == sum(len(text.encode()) for _, text in DOCUMENTS)


def test_each_document_ends_with_the_separator_and_keeps_its_domain():
    split = make_split(DOCUMENTS, BPE)
    ends = torch.cat((split.document_start_D[1:], torch.tensor([split.num_tokens]))) - 1
    assert split.tokens_at(ends).eq(BPE.separator).all()
    assert split.domain_of(ends).tolist() == [0, 2, 1, 0]
    assert len(split.document_start_D) == 4


@pytest.mark.parametrize("tokenizer", [BPE, ByteTokenizer()], ids=["bpe", "bytes"])
def test_a_corpus_comes_back_from_its_tensors_and_files(tokenizer, tmp_path):
    corpus = Corpus(
        spec_of(tokenizer),
        train=make_split(DOCUMENTS, tokenizer),
        validation=make_split(DOCUMENTS[1:2], tokenizer),
        held_out=make_split(DOCUMENTS[:1], tokenizer),
        tokenizer=tokenizer,
    )
    for name, data in corpus.to_files().items():
        (tmp_path / name).write_bytes(data)
    files = {name: tmp_path / name for name in corpus.to_files()}
    opened = Corpus.restore("corpus", corpus.spec.model_dump(mode="json"), corpus.to_tensors(), files)
    assert opened.spec == corpus.spec
    assert torch.equal(opened.token_bytes_V, corpus.token_bytes_V)
    for name, tensor in opened.to_tensors().items():
        assert torch.equal(tensor, corpus.to_tensors()[name]), name
    assert opened.tokenizer.encode("the last") == tokenizer.encode("the last")


def test_a_corpus_from_before_there_was_a_validation_split_opens_and_says_so_where_it_is_needed(tmp_path):
    split, tokenizer = make_split(DOCUMENTS, ByteTokenizer()), ByteTokenizer()
    corpus = Corpus(spec_of(tokenizer), train=split, validation=split, held_out=split, tokenizer=tokenizer)
    older = {name: tensor for name, tensor in corpus.to_tensors().items() if not name.startswith("validation")}
    opened = Corpus.restore("corpus", corpus.spec.model_dump(mode="json"), older, {})
    assert torch.equal(opened.held_out.tokens_N, split.tokens_N)
    with pytest.raises(ValueError, match=r"a split of 0 tokens holds no window .* prepare it again if it is older"):
        held_out_windows(opened.validation, num_tokens=None, length=4)


def spec_of(tokenizer) -> CorpusSpec:
    return CorpusSpec(
        tokenizer="bytes" if tokenizer.separator is None else "bpe",
        vocab_size=len(tokenizer.token_bytes),
        domains=("first", "second", "third"),
    )
