"""The search for rules: planted ones are found, counts are those of brute force, and noise gets nothing long."""

import pytest
import torch

from pipeline.symbolic.rules.bit_sets import count, packed, unpacked
from pipeline.symbolic.rules.circuits import Circuit, outputs
from pipeline.symbolic.rules.search import THRESHOLDS, Sample, gate_words, search
from tests.logic_gates import gate

# Q experts, C candidates, N tokens

Q, C, N = 5, 9, 501


def values(seed=0, chance=0.4):
    return torch.rand(Q, C, N, generator=torch.Generator().manual_seed(seed)) < chance


def sample(value_QCN, fire_QN) -> Sample:
    literal_QC = 100 * torch.arange(Q)[:, None] + torch.arange(C)
    return Sample(literal_QC, packed(value_QCN), packed(fire_QN), N)


def said(circuit: Circuit, q: int, value_QCN):
    return outputs(circuit, {100 * q + c: value_QCN[q, c] for c in range(C)})


def f1(said_N, fire_N):
    return float(2 * (said_N & fire_N).sum() / (said_N.sum() + fire_N.sum()))


@pytest.mark.parametrize("kind", range(16))
def test_the_words_of_a_gate_are_those_of_its_values(kind):
    value_QCN = values()
    a_QN, b_QN = value_QCN[:, 3], value_QCN[:, 5]
    found_QW = gate_words(torch.full((Q,), kind), packed(a_QN), packed(b_QN), N)
    assert torch.equal(unpacked(found_QW, N), gate(kind, a_QN, b_QN))


@pytest.mark.parametrize("kind", [1, 2, 6, 7, 11])
def test_a_planted_gate_is_found_and_nothing_longer_is_kept(kind):
    value_QCN = values(1)
    fire_QN = gate(kind, value_QCN[:, 4], value_QCN[:, 1])
    found = search(sample(value_QCN, fire_QN))
    for q in range(Q):
        assert torch.equal(said(found.gate[q], q, value_QCN), fire_QN[q])
        assert len(found.gate[q].gates) == 1
    assert found.chain == found.threshold == [None] * Q


def test_either_of_two_literals_that_exclude_each_other_is_said_as_or():
    value_QCN = values(8)
    value_QCN[:, 2] &= ~value_QCN[:, 5]
    found = search(sample(value_QCN, value_QCN[:, 2] ^ value_QCN[:, 5]))
    assert [circuit.gates for circuit in found.gate] == [((7, 0, 1),)] * Q


def test_one_literal_is_a_rule_of_one_gate():
    value_QCN = values(2)
    found = search(sample(value_QCN, value_QCN[:, 7]))
    assert [circuit.inputs for circuit in found.gate] == [(100 * q + 7,) for q in range(Q)]


@pytest.mark.parametrize(
    ("planted", "chance"),
    [
        (lambda v: v[:, 2] & v[:, 6] & ~v[:, 0], 0.5),
        (lambda v: v[:, 2] | v[:, 6] | v[:, 8], 0.1),
        (lambda v: v[:, 1] & v[:, 3] & v[:, 5] & v[:, 7], 0.5),
        (lambda v: (v[:, 1] | v[:, 3]) & ~v[:, 5], 0.3),
    ],
    ids=["and not", "or", "and of four", "or and not"],
)
def test_a_planted_chain_is_found(planted, chance):
    value_QCN = values(3, chance)
    fire_QN = planted(value_QCN)
    found = search(sample(value_QCN, fire_QN))
    for q, circuit in enumerate(found.chain):
        assert circuit is not None
        assert torch.equal(said(circuit, q, value_QCN), fire_QN[q])
        assert len(circuit.inputs) <= 4


@pytest.mark.parametrize(("least", "of", "gates"), THRESHOLDS)
def test_the_gates_of_a_threshold_count(least, of, gates):
    every = list((torch.arange(2**of) >> torch.arange(of)[:, None] & 1).bool())
    assert torch.equal(outputs(Circuit(tuple(range(of)), gates), every), torch.stack(every).sum(0) >= least)


@pytest.mark.parametrize(("least", "of"), [(2, 3), (2, 4), (3, 4)])
def test_a_planted_threshold_is_found(least, of):
    value_QCN = values(4, 0.5)
    fire_QN = value_QCN[:, 2 : 2 + of].sum(1) >= least
    found = search(sample(value_QCN, fire_QN))
    for q, circuit in enumerate(found.threshold):
        assert circuit is not None
        assert torch.equal(said(circuit, q, value_QCN), fire_QN[q])
        assert circuit.inputs == tuple(100 * q + 2 + i for i in range(of))


def test_what_a_sample_says_of_f1_is_brute_force():
    value_QCN, fire_QN = values(5), values(6)[:, 0]
    given = sample(value_QCN, fire_QN)
    found_QC = given.f1(given.value_QCW)
    for q in range(Q):
        for c in range(C):
            assert float(found_QC[q, c]) == pytest.approx(f1(value_QCN[q, c], fire_QN[q]))
    assert torch.equal(count(given.fire_QW), fire_QN.sum(1).float())


def test_an_expert_that_never_fires_gets_no_long_rule():
    found = search(sample(values(7), torch.zeros(Q, N, dtype=torch.bool)))
    assert found.chain == found.threshold == [None] * Q
