"""The untrained twin: random weights, the same tokens, and as many experts that fire."""

import pytest
import torch

from pipeline.examining.contribution_drift import check_same_tokens
from pipeline.examining.untrained import untrained_record
from pipeline.records.recording import Recording, record_activations
from pipeline.run import Run, running
from tests.tiny import DENSE, HORIZONTAL, INT4, JUMP, SOFTMAX, tiny_corpus, tiny_model
from tests.tiny_symbols import symbols_model

RECORDING = Recording(split="held_out", tokens=300, context_length=10, batch_size=8, most=6, contributions="float32")


def both(model, seed=0):
    corpus = tiny_corpus()
    with running(Run(seed=seed)):
        record = record_activations(model, corpus, RECORDING)
        return record, untrained_record(model, corpus, record)


def fired(record):
    return sum(record.of_block(block, "fired").double().mean().item() for block in range(record.blocks))


@pytest.mark.parametrize("experts", [JUMP, INT4], ids=["jumprelu", "int4"])
def test_as_many_experts_fire_and_they_are_others(experts):
    model = tiny_model(experts, vocab_size=256)
    record, twin = both(model)
    assert fired(twin) == pytest.approx(fired(record), rel=0.15)
    assert twin.spec.model_sha256 != record.spec.model_sha256
    assert twin.spec.experts == record.spec.experts
    check_same_tokens(twin, record)
    assert (twin.of_block(0, "contribution") > 0).any()


@pytest.mark.parametrize("experts", [DENSE, HORIZONTAL, SOFTMAX], ids=["dense", "monet", "softmax"])
def test_kinds_that_fix_how_many_fire_have_a_twin_too(experts):
    record, twin = both(tiny_model(experts, vocab_size=256))
    assert fired(twin) > 0
    check_same_tokens(twin, record)


def test_of_one_seed_it_is_the_same_and_of_another_it_is_not():
    model = tiny_model(JUMP, vocab_size=256)
    digests = [both(model, seed)[1].spec.model_sha256 for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_symbols_that_were_never_distilled_fire_nothing():
    record, twin = both(symbols_model())
    assert fired(record) > 0
    assert fired(twin) == 0


def test_the_model_itself_keeps_its_bits():
    model = tiny_model(JUMP, vocab_size=256)
    before = {name: of.clone() for name, of in model.state_dict().items()}
    both(model)
    assert all(torch.equal(of, before[name]) for name, of in model.state_dict().items())
