"""A record holds what the pairs of a walk say, counted again by loops: of every kind of model, however it was made."""

import math
import struct
from collections import defaultdict

import pytest
import torch

from artifacts import ArtifactError
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.models.contract import Pairs
from pipeline.models.language_model import LanguageModel
from pipeline.records import recording as recording_module
from pipeline.records.recording import Recording, record_activations
from pipeline.records.strongest import strongest
from pipeline.run import Run, running
from tests.tiny import EVERY_KIND, JUMP, SOFTMAX, tiny_corpus, tiny_model
from tests.tiny_symbols import symbols_model

LENGTH, BATCH, MOST = 9, 4, 3
RECORDING = Recording(
    split="held_out", tokens=100, context_length=LENGTH, batch_size=BATCH, most=MOST, contributions="float32"
)
TEXTS = {"farm": ("the hen hid; a dog ran. ", "red barn, "), "code": ("for i in range(9): print(i)\n",), "none": ()}


def model_of(name: str) -> LanguageModel:
    return symbols_model() if name == "symbols" else tiny_model(EVERY_KIND[name], vocab_size=256)


@pytest.fixture(scope="module")
def corpus():
    """Documents of two domains in the held-out split, and a domain in the middle that has no text there."""
    tokenizer = ByteTokenizer()
    documents = [(2, TEXTS["code"][0] * 3), *((0, text * 3) for text in TEXTS["farm"]), (2, TEXTS["code"][0])]
    plain = tiny_corpus()
    return Corpus(
        CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("farm", "none", "code")),
        train=plain.train,
        validation=plain.validation,
        held_out=make_split(documents, tokenizer),
        tokenizer=tokenizer,
    )


def by_loops(model, corpus, recording):
    """(what stands where, by block what fired, losses), token by token."""
    text = corpus.held_out.tokens_N.tolist()
    available = (len(text) - 1) // recording.context_length
    windows = min(available, recording.tokens // recording.context_length)
    first = [i * available // windows * recording.context_length for i in range(windows)]
    starts = [*corpus.held_out.document_start_D.tolist(), len(text)]
    rows, fired, losses = [], defaultdict(list), []
    for begin in range(0, windows, recording.batch_size):
        batch = first[begin : begin + recording.batch_size]
        tokens_BT = torch.tensor([text[start : start + recording.context_length] for start in batch])
        with torch.no_grad():
            logits = model(tokens_BT).double()
            visits = list(model.walk(tokens_BT))
        for block, visit in enumerate(visits):
            sums = [defaultdict(float) for _ in range(tokens_BT.numel())]
            pairs = visit.pairs()
            for token, expert, norm in zip(
                pairs.token_P.tolist(), pairs.expert_P.tolist(), pairs.norm_P.tolist(), strict=True
            ):
                if norm > 0:
                    sums[token][expert] += norm
            fired[block] += sums
        for window, start in enumerate(batch):
            for place in range(recording.context_length):
                at = start + place
                document = max(i for i, begins in enumerate(starts) if begins <= at)
                rows.append((text[at], text[at + 1], document, at - starts[document]))
                row = logits[window, place]
                losses.append((row.logsumexp(0) - row[text[at + 1]]).item())
    return rows, fired, losses


@pytest.mark.parametrize("name", [*EVERY_KIND, "symbols"])
def test_it_holds_what_a_walk_says_of_every_kind_of_model(name, corpus):
    model = model_of(name)
    record = record_activations(model, corpus, RECORDING)
    rows, fired, losses = by_loops(model, corpus, RECORDING)
    names = "token", "label", "document", "position"
    assert [*zip(*(record.tensors[name].tolist() for name in names), strict=True)] == rows
    assert record.tensors["loss_nats"].tolist() == pytest.approx(losses, abs=1e-4)
    left_out = 0
    for block, tokens in fired.items():
        expert, contribution, count, omitted = (
            record.of_block(block, name).tolist() for name in ("expert", "contribution", "fired", "omitted_share")
        )
        assert count == [len(sums) for sums in tokens]
        for token, sums in enumerate(tokens):
            best = sorted(sums.values(), reverse=True)[:MOST]
            found = [one for one in expert[token] if one >= 0]
            nothing = MOST - len(best)
            assert found == sorted(set(found))
            assert expert[token] == [*found, *[-1] * nothing]
            assert contribution[token] == pytest.approx([*(sums[one] for one in found), *[0.0] * nothing], rel=1e-4)
            assert sorted((sums[one] for one in found), reverse=True) == pytest.approx(best, rel=1e-4)
            share = 1 - sum(best) / sum(sums.values()) if len(sums) > MOST else 0.0
            assert omitted[token] == pytest.approx(share, abs=1e-5)
            left_out += share > 0
    assert left_out or name == "symbols"


@pytest.mark.parametrize("name", ["dense", "peer-softmax", "symbols"])
def test_both_ways_to_lay_out_pairs_keep_the_same(name, corpus, monkeypatch):
    model = model_of(name)
    found = []
    for pairs_in in (1, 10**9):
        monkeypatch.setattr("pipeline.records.strongest._DENSE", pairs_in)
        found.append(record_activations(model, corpus, RECORDING).tensors)
    for name, values in found[0].items():
        rounding = 1e-6 if name.endswith("omitted_share") else 0  # sums over more zeros
        torch.testing.assert_close(values, found[1][name], rtol=0, atol=rounding)


def test_of_equal_contributions_the_lower_numbers_are_kept_on_both_ways(monkeypatch):
    """Expert 5 by two heads, and one that adds nothing."""
    of_pairs = [(0, 7, 1.0), (0, 5, 0.5), (0, 2, 1.0), (0, 5, 0.5), (0, 9, 3.0), (0, 1, 0.0), (2, 4, 2.0)]
    token_P, expert_P, norm_P = (torch.tensor(of) for of in zip(*of_pairs, strict=True))
    pairs = Pairs(token_P=token_P, expert_P=expert_P, gate_P=norm_P, pre_PM=norm_P[:, None], norm_P=norm_P)
    for pairs_in in (1, 10**9):
        monkeypatch.setattr("pipeline.records.strongest._DENSE", pairs_in)
        kept = strongest(pairs, tokens=3, experts=11, most=2)
        assert kept.expert_TK.tolist() == [[2, 9], [-1, -1], [4, -1]]
        assert kept.contribution_TK.tolist() == [[1.0, 3.0], [0.0, 0.0], [2.0, 0.0]]
        assert kept.fired_T.tolist() == [4, 0, 1]
        assert kept.omitted_share_T.tolist() == pytest.approx([2 / 6, 0, 0])
    nothing = Pairs(**{name: getattr(pairs, name)[:0] for name in Pairs.__dataclass_fields__})
    kept = strongest(nothing, tokens=3, experts=11, most=2)
    assert kept.expert_TK.tolist() == [[-1, -1]] * 3
    assert kept.omitted_share_T.tolist() == [0, 0, 0]


def test_domains_are_numbered_without_those_that_have_no_text(corpus):
    told = []
    with running(Run(report=lambda progress: told.append(progress.what))):
        record = record_activations(tiny_model(SOFTMAX, vocab_size=256), corpus, RECORDING)
    assert record.spec.domains == ("farm", "code")
    assert set(record.tensors["domain"].tolist()) == {0, 1}
    first = record.tensors["document"] == 0
    assert set(record.tensors["domain"][first].tolist()) == {1}
    assert "no token that is recorded is of the domain 'none'" in told


def test_experts_of_a_key_grid_have_their_cells(corpus):
    model = tiny_model(JUMP, vocab_size=256)
    record = record_activations(model, corpus, RECORDING)
    for block, layer in enumerate(model.expert_layers()):
        start = layer.index.stored.row().tolist()
        for cell in range(len(start) - 1):
            for expert in range(start[cell], start[cell + 1]):
                assert record.cells_of(block)[expert].tolist() == [cell // 5, cell % 5]
    monet = record_activations(model_of("monet-vertical"), corpus, RECORDING)
    assert monet.cells_of(1).tolist() == [[i, j] for i in range(5) for j in range(5)]
    assert record_activations(model_of("dense"), corpus, RECORDING).cells_of(0) is None


def test_float16_holds_the_same_rounded(corpus):
    model = tiny_model(SOFTMAX, vocab_size=256)
    wide, narrow = (
        record_activations(model, corpus, Recording(**{**as_fields(RECORDING), "contributions": number_type}))
        for number_type in ("float32", "float16")
    )
    assert torch.equal(wide.of_block(0, "expert"), narrow.of_block(0, "expert"))
    assert torch.equal(wide.of_block(0, "contribution").half(), narrow.of_block(0, "contribution"))


def as_fields(recording):
    return {name: getattr(recording, name) for name in Recording.__dataclass_fields__}


class KilledError(Exception):
    """In the place of a signal."""


@pytest.fixture
def killed(corpus, tmp_path, monkeypatch):
    """killed(batch): a folder of checkpoints that a run has left which ended at this batch, sealed every second."""
    monkeypatch.setattr(recording_module, "_TOKENS_A_BLOCK", 2 * BATCH * LENGTH)
    model, batches = tiny_model(JUMP, vocab_size=256), recording_module.batch_columns

    def killed(batch):
        seen = []

        def until(*arguments):
            seen.append(None)
            if len(seen) > batch:
                raise KilledError
            return batches(*arguments)

        folder = tmp_path / f"killed-{batch}"
        folder.mkdir()
        with monkeypatch.context() as patch, running(Run(checkpoints=folder)):
            patch.setattr(recording_module, "batch_columns", until)
            with pytest.raises(KilledError):
                record_activations(model, corpus, RECORDING)
        return folder

    return killed


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_gone_on_from_after_a_kill_it_has_the_same_bits(batch, killed, corpus, monkeypatch):
    model = tiny_model(JUMP, vocab_size=256)
    whole = record_activations(model, corpus, RECORDING)
    folder, ran = killed(batch), []
    batches = recording_module.batch_columns
    monkeypatch.setattr(recording_module, "batch_columns", lambda *a: ran.append(None) or batches(*a))
    with running(Run(checkpoints=folder)):
        resumed = record_activations(model, corpus, RECORDING)
    assert len(ran) == 3 - batch // 2 * 2
    assert resumed.spec == whole.spec
    assert resumed.tensors.keys() == whole.tensors.keys()
    for name, values in whole.tensors.items():
        assert values.dtype == resumed.tensors[name].dtype
        assert values.numpy().tobytes() == resumed.tensors[name].numpy().tobytes(), name


@pytest.mark.parametrize("damage", ["flipped", "short", "gone", "seal"])
def test_damaged_rows_are_refused_by_name(damage, killed, corpus):
    folder = killed(2)
    path = folder / ("rows.pt" if damage == "seal" else "layers.1.expert.rows")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        path.write_bytes(data[:7])
    else:
        path.write_bytes(data[:40] + struct.pack("B", data[40] ^ 4) + data[41:])
    with running(Run(checkpoints=folder)), pytest.raises(ArtifactError, match=rf"{path.name}.*--force, to begin anew"):
        record_activations(tiny_model(JUMP, vocab_size=256), corpus, RECORDING)


def test_a_full_disk_is_told(corpus, tmp_path):
    with running(Run(checkpoints=tmp_path / "nowhere")), pytest.raises(ArtifactError, match="could not write rows"):
        record_activations(tiny_model(JUMP, vocab_size=256), corpus, RECORDING)


def test_a_model_of_another_vocabulary_is_refused(corpus):
    with pytest.raises(ValueError, match="reads 23 tokens and the corpus has a tokenizer of 256; name the corpus"):
        record_activations(tiny_model(SOFTMAX), corpus, RECORDING)


def test_text_without_a_window_is_refused(corpus):
    recording = Recording(**{**as_fields(RECORDING), "context_length": 10_000})
    with pytest.raises(ValueError, match="holds no window of 10000 inputs"):
        record_activations(tiny_model(SOFTMAX, vocab_size=256), corpus, recording)


@pytest.mark.parametrize(
    ("weight", "contributions", "says"),
    [
        (math.nan, "float32", r"in block 1, expert \d+ contributes nan"),
        (
            1e9,
            "float16",
            "in block 1 an expert contributes .*float16 holds at most 6.55e.04; record with contributions",
        ),
    ],
)
def test_contributions_that_cannot_be_held_are_refused(weight, contributions, says, corpus):
    model = tiny_model(EVERY_KIND["dense"], vocab_size=256)
    with torch.no_grad():
        model.blocks()[1].moe.down.weight.fill_(weight)
    with pytest.raises(ValueError, match=says):
        record_activations(model, corpus, Recording(**{**as_fields(RECORDING), "contributions": contributions}))
