"""ablate: losses without experts are those of a copy whose rows of v are zeros; intervals and random sets by hand."""

import copy
import json
import math

import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from pipeline.corpus.splits import Corpus, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.corpus.visible import quoted
from pipeline.corpus.windows import held_out_windows, target_positions
from pipeline.opening import Opened
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.asking.ablate import CONTINUED, NEAR, clustered, random_set, worth
from pipeline.symbolic.asking.told import worth_lines
from tests.tiny import JUMP, tiny_corpus, tiny_model

LAYER, EXPERTS, TOKENS = 1, [3, 11, 20], 200


@pytest.fixture(scope="module")
def opened():
    return Opened(id="tiny", model=tiny_model(JUMP, vocab_size=256), corpus=tiny_corpus(), context=19)


def without(model, experts):
    """A copy whose experts write nothing."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        (row,) = [p for name, p in other.blocks()[LAYER].moe.named_parameters() if name.split(".")[0] == "v"]
        row[experts] = 0
    return other


def losses(model, split):
    inputs_WT, targets_WT = held_out_windows(split, num_tokens=TOKENS, length=19)
    with torch.no_grad():
        logits_WTV = model(inputs_WT)
    return F.cross_entropy(logits_WTV.flatten(0, 1), targets_WT.flatten(), reduction="none").double(), logits_WTV


@pytest.fixture(scope="module")
def found(opened):
    return worth(opened, LAYER, EXPERTS, tokens=TOKENS, prompt="the cat")


def test_the_increase_is_that_of_a_copy_whose_experts_write_nothing(opened, found):
    split = opened.corpus.held_out
    whole_N, logits_WTV = losses(opened.model, split)
    other_N, other_WTV = losses(without(opened.model, EXPERTS), split)
    increase_N = other_N - whole_N
    assert found.sample_tokens == len(whole_N)
    assert found.loss_nats == pytest.approx(float(whole_N.mean()), rel=1e-6)
    assert found.increase_nats == pytest.approx(float(increase_N.mean()), rel=1e-3, abs=1e-7)
    fires_N = (other_WTV != logits_WTV).any(-1).flatten()  # later tokens of a window see those that it fires on
    assert found.fires_on <= int(fires_N.sum())
    assert found.hurts_most[0].increase_nats == pytest.approx(float(increase_N.max()), rel=1e-3)
    parts = found.increase_where_it_fires_nats * found.fires_on
    parts += found.increase_elsewhere_nats * (found.sample_tokens - found.fires_on)
    assert parts == pytest.approx(float(increase_N.sum()), rel=1e-3, abs=1e-6)


def test_where_it_hurts_is_told_with_the_text_before(opened, found):
    split = opened.corpus.held_out
    increase_N = losses(without(opened.model, EXPERTS), split)[0] - losses(opened.model, split)[0]
    position = int(target_positions(split, num_tokens=TOKENS, length=19).flatten()[increase_N.argmax()])
    text = bytes(split.tokens_N.tolist())
    assert text[:position].decode().endswith(found.hurts_most[0].before)
    assert found.hurts_most[0].token == chr(text[position])


def test_continuations_are_the_likeliest_tokens_with_and_without(opened, found):
    def likeliest(model):
        ids = list(b"the cat")
        for _ in range(CONTINUED):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids[-19:]]))[0, -1].argmax()))
        return bytes(ids[7:])

    assert found.continued.prompt == "'the cat'"
    assert found.continued.whole == quoted(likeliest(opened.model))
    assert found.continued.ablated == quoted(likeliest(without(opened.model, EXPERTS)))


def test_random_sets_add_as_much_in_all_and_none_of_the_experts(found):
    output_E = torch.tensor([4.0, 0, 1, 1, 1, 0.5, 0.5, 7, 0.25])
    for seed in range(20):
        others = random_set(output_E, [0], torch.Generator().manual_seed(seed))
        assert not {0, 1} & {*others}
        assert len({*others}) == len(others)
        total, unused = float(output_E[others].sum()), {2, 3, 4, 5, 6, 7, 8} - {*others}
        assert total <= 4 * (1 + NEAR)
        # Near enough, or no other expert is small enough.
        assert total >= 4 * (1 - NEAR) or all(total + float(output_E[one]) > 4 * (1 + NEAR) for one in unused)
    assert random_set(torch.tensor([1.0, 9.0]), [0], torch.Generator().manual_seed(0)) == []
    assert len(found.controls) == 5
    assert len({control.increase_nats for control in found.controls}) > 1
    assert all(0.5 < control.output <= 1 + NEAR for control in found.controls)


def test_random_sets_are_measured_on_the_same_tokens_as_the_experts(opened, monkeypatch):
    """Such a set, asked for itself, loses what the control says and adds on as many tokens."""
    others = [5, 14]
    monkeypatch.setattr("pipeline.symbolic.asking.ablate.random_set", lambda *_: others)
    control = worth(opened, LAYER, EXPERTS, tokens=TOKENS, prompt="a").controls[0]
    itself = worth(opened, LAYER, others, tokens=TOKENS, prompt="a")
    assert (control.experts, control.fires_on) == (2, itself.fires_on)
    assert control.increase_nats == pytest.approx(itself.increase_nats, abs=1e-12)


def test_the_prompt_stands_before_a_token_that_does_not_begin_a_document():
    """Documents of three letters: an expert that is worth most on a first letter still has a prompt of a document."""
    split = make_split([(0, "abc"), (0, "xyz")] * 60, ByteTokenizer())
    known = tiny_corpus()
    corpus = Corpus(known.spec, train=split, validation=split, held_out=split, tokenizer=known.tokenizer)
    opened = Opened(id="tiny", model=tiny_model(JUMP, vocab_size=256), corpus=corpus, context=19)
    with torch.no_grad():
        *_, visit = opened.model.walk(held_out_windows(split, num_tokens=TOKENS, length=19)[0])
        pairs = visit.pairs()
    firing = pairs.expert_P[pairs.norm_P > 0].unique().tolist()[:6]
    last = len(opened.model.blocks()) - 1
    asked = [worth(opened, last, [expert], tokens=TOKENS, prompt=None) for expert in firing]
    assert any(one.hurts_most[0].before == "" for one in asked)
    assert {one.continued.prompt for one in asked} <= {"'a'", "'ab'", "'x'", "'xy'"}


def test_the_interval_is_students_of_sums_over_documents():
    value_N = torch.tensor([0.5, 1.5, -1.0, 2.0, 0.25, 0.0, 3.0], dtype=torch.float64)
    document_N = torch.tensor([4, 4, 4, 9, 9, 2, 2])
    mean, half_width, documents = clustered(value_N, document_N)
    assert (mean, documents) == (pytest.approx(6.25 / 7), 3)
    sums = [1.0 - 3 * mean, 2.25 - 2 * mean, 3.0 - 2 * mean]
    error = math.sqrt(sum(off**2 for off in sums) * 3 / 2) / 7
    assert half_width == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert clustered(value_N, torch.zeros(7)) == (pytest.approx(6.25 / 7), None, 1)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Documents of unequal length whose tokens agree."""
    held, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(400):
        length_D = torch.randint(1, 30, (40,), generator=generator)
        document_N = torch.repeat_interleave(torch.arange(40), length_D)
        shared_D = torch.randn(40, generator=generator, dtype=torch.float64)
        value_N = shared_D[document_N] + torch.randn(len(document_N), generator=generator, dtype=torch.float64)
        mean, half_width, _ = clustered(value_N, document_N)
        held += abs(mean) <= half_width
    assert 0.91 <= held / 400 <= 0.98


def test_probabilities_that_move_are_those_where_it_fires(opened):
    """Of one expert on tokens on which it alone is left out: by the mean over them."""
    split = opened.corpus.held_out
    found = worth(opened, LAYER, [3], tokens=TOKENS, prompt="a")
    (_, logits_WTV), (_, other_WTV) = losses(opened.model, split), losses(without(opened.model, [3]), split)
    inputs_WT, _ = held_out_windows(split, num_tokens=TOKENS, length=19)
    with torch.no_grad():
        for layer, visit in enumerate(opened.model.walk(inputs_WT)):
            if layer == LAYER:
                pairs = visit.pairs()
    on = torch.unique(pairs.token_P[(pairs.expert_P == 3) & (pairs.norm_P > 0)]).tolist()
    assert len(on) == found.fires_on > 0
    shift_V = (other_WTV.softmax(-1) - logits_WTV.softmax(-1)).flatten(0, 1)[on].mean(0)
    assert [one.change for one in found.rises] == pytest.approx(shift_V.topk(5).values.tolist(), rel=1e-2, abs=1e-8)
    assert [one.change for one in found.falls] == pytest.approx(
        shift_V.topk(5, largest=False).values.tolist(), rel=1e-2, abs=1e-8
    )


def test_it_is_told_in_lines_of_80_columns_and_as_data(symbols_store, capsys, found):
    assert max(map(len, worth_lines(found))) <= 80
    words = ["ablate", "latest", "--layer", "0", "--expert", "0", "1", "--tokens", "300", "--store"]
    assert main([*words, str(symbols_store.root)]) == 0
    out = capsys.readouterr().out
    assert "layer 0 without experts 0, 1" in out
    assert max(map(len, out.splitlines())) <= 80
    assert main([*words, str(symbols_store.root), "--json", "--prompt", "the"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["experts"], data["continued"]["prompt"]) == ([0, 1], "'the'")
    # The one document of that store has no interval.
    assert data["increase_half_width_nats"] is None
