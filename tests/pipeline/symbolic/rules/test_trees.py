"""Trees on counts of patterns: planted rules are found, circuits say what leaves say, leaves are chosen exactly."""

import itertools

import pytest
import torch

from pipeline.symbolic.rules.circuits import outputs
from pipeline.symbolic.rules.trees import LEAST_TOKENS, Patterns, grown_tree, patterns

# C candidates, N tokens, K patterns

C, N = 6, 900
LITERALS = [40, 41, 42, 43, 44, 45]


def values(seed=0):
    return torch.rand(C, N, generator=torch.Generator().manual_seed(seed)) < 0.45


def test_patterns_count_every_token_once():
    value_CN, fire_N = values(), values(1)[0]
    given = patterns(value_CN, fire_N)
    assert float(given.count_K.sum()) == N
    assert float(given.fired_K.sum()) == int(fire_N.sum())
    for true_C, tokens, fired in zip(given.true_KC, given.count_K, given.fired_K, strict=True):
        here_N = (value_CN == true_C[:, None]).all(0)
        assert (int(here_N.sum()), int((here_N & fire_N).sum())) == (int(tokens), int(fired))


@pytest.mark.parametrize(
    "planted",
    [
        lambda v: torch.where(v[0], v[1], v[2] & ~v[3]),
        lambda v: (v[0] & v[1]) | (v[2] & v[3] & v[5]),
        lambda v: ~(v[4] | v[5]),
    ],
    ids=["if then else", "two ways", "neither"],
)
def test_a_planted_rule_is_said_in_full(planted):
    value_CN = values(2)
    fire_N = planted(value_CN)
    tree = grown_tree(patterns(value_CN, fire_N), LITERALS)
    assert torch.equal(outputs(tree, dict(zip(LITERALS, value_CN, strict=True))), fire_N)


def test_noise_does_not_make_long_rules():
    value_CN = values(3)
    fire_N = torch.rand(N, generator=torch.Generator().manual_seed(4)) < 0.5
    tree = grown_tree(patterns(value_CN, fire_N), LITERALS)
    assert len(tree.gates) <= 4


@pytest.mark.parametrize("seed", range(4))
def test_with_one_split_the_leaves_that_say_yes_are_those_of_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    value_CN = values(seed)[:2]
    chance_N = torch.rand(4, generator=generator)[(value_CN[0].long() * 2 + value_CN[1])]
    fire_N = torch.rand(N, generator=generator) < chance_N
    given = patterns(value_CN, fire_N)
    assert len(given.count_K) == 4
    assert float(given.count_K.min()) >= LEAST_TOKENS
    tree = grown_tree(given, [7, 8])
    ways = itertools.product((False, True), repeat=4)
    best = max(given.f1(torch.tensor(way)) for way in ways if any(way))
    found = given.f1(outputs(tree, dict(zip([7, 8], given.true_KC.unbind(1), strict=True))))
    assert found >= best - 0.003 * len(tree.gates)


def test_what_a_rule_is_worth_falls_with_its_gates():
    given = Patterns(torch.tensor([[False], [True]]), torch.tensor([50.0, 20.0]), torch.tensor([0.0, 20.0]))
    tree = grown_tree(given, [9])
    assert (tree.inputs, tree.gates) == ((9,), ((3, 0, 0),))
    assert given.worth(tree, [9]) == pytest.approx(1 - 0.003)
