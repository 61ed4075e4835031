"""Gate networks: they begin as the rule they are given, learn what it lacks, and come out as small rules."""

import pytest
import torch

from pipeline.symbolic.rules import gate_nets
from pipeline.symbolic.rules.circuits import Circuit, minimised, outputs
from pipeline.symbolic.rules.gate_nets import RULE_GATES, Task, fits, learned
from pipeline.symbolic.rules.trees import patterns

# C candidates, N tokens

C, N = 7, 700
LITERALS = [30, 31, 32, 33, 34, 35, 36]


def values(seed):
    return torch.rand(C, N, generator=torch.Generator().manual_seed(seed)) < 0.4


def task(planted, start: Circuit, seed=0) -> Task:
    value_CN = values(seed)
    return Task(patterns(value_CN, planted(value_CN)), LITERALS, start)


def f1(given: Task, rule: Circuit) -> float:
    return given.given.f1(outputs(rule, dict(zip(LITERALS, given.given.true_KC.unbind(1), strict=True))))


STARTS = [
    Circuit((31,), ((3, 0, 0),)),
    Circuit((30, 33), ((2, 0, 1),)),
    minimised([30, 32, 35, 36], [(1, 0, 1), (7, 4, 2), (6, 5, 3)]),
    minimised(LITERALS, [(1, 0, 1), (7, 2, 3), (6, 4, 5), (1, 7, 8), (7, 9, 10), (2, 11, 6)]),
]


@pytest.mark.parametrize("start", STARTS, ids=str)
def test_before_it_learns_a_network_is_the_rule_that_it_begins_as(start):
    assert fits(start)
    net = gate_nets._begin(task(lambda v: v[0], start), torch.Generator().manual_seed(1))
    rule = minimised(LITERALS, [gate for level in net.levels for gate in level])
    values_CX = list((torch.arange(2**C) >> torch.arange(C)[:, None] & 1).bool())
    by_literal = dict(zip(LITERALS, values_CX, strict=True))
    assert torch.equal(outputs(rule, by_literal), outputs(start, by_literal))
    assert len(rule.gates) <= len(start.gates)


def test_a_network_that_learned_nothing_leaves_the_rule_as_it_was(monkeypatch):
    monkeypatch.setattr(gate_nets, "STEPS", 0)
    tasks = [task(lambda v: v[3], start, seed) for seed, start in enumerate(STARTS)]
    assert learned(tasks, generator=torch.Generator().manual_seed(2)) == STARTS


def test_networks_learn_what_their_rule_lacks_and_none_gets_worse():
    tasks = [
        task(lambda v: v[0] & v[1], STARTS[1], 2),
        task(lambda v: v[1] | v[4], STARTS[0], 3),
        task(lambda v: v[1], STARTS[0], 4),
    ]
    rules = learned(tasks, generator=torch.Generator().manual_seed(5))
    before, after = ([f1(given, rule) for given, rule in zip(tasks, of, strict=True)] for of in (
        [given.start for given in tasks], rules))  # fmt: skip
    assert all(now >= then - 1e-6 for then, now in zip(before, after, strict=True))
    assert after[0] > before[0] + 0.1
    assert after[2] == 1
    assert rules[2] == STARTS[0]


def test_the_same_seed_learns_the_same_rules():
    tasks = [task(lambda v: v[2] & (v[3] | v[5]), STARTS[1], 6)]
    first, second = (learned(tasks, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == second


def test_a_rule_too_long_for_a_network_does_not_fit():
    chain = Circuit((1, 2), ((1, 0, 1), *((6, 2 + i, 0) for i in range(len(RULE_GATES)))))
    assert not fits(chain)
    assert fits(Circuit(chain.inputs, chain.gates[:-1]))


def test_no_tasks_are_no_rules():
    assert learned([], generator=torch.Generator()) == []
