"""The control of firing rules: what the search finds in noise, beside a planted rule that it finds."""

import pytest
import torch

from kernels.pairs import starts
from kernels.symbol_table.tables import context_of
from pipeline.models.literals import Literals
from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules import permuted_rules
from pipeline.symbolic.rules.literals import build_literals
from pipeline.symbolic.rules.permuted_rules import Samples, best_rule_f1, permuted_rule_f1

# N tokens, E experts, V vocabulary

E, V, NOISY = 9, 23, 4


def events(seed) -> Events:
    """Expert e fires where the token is e or e + 1 after a digit, an even one; the last ones on half of these."""
    generator = torch.Generator().manual_seed(seed)
    context_ON = context_of(torch.randint(V, (60, 50), generator=generator), 2)
    current_N, previous_N = context_ON
    expert_E1 = torch.arange(E)[:, None]
    fires_EN = ((current_N == expert_E1) | (current_N == expert_E1 + 1)) & (previous_N >= 0) & (previous_N % 2 == 0)
    fires_EN[-NOISY:] &= torch.rand(len(current_N), generator=generator) < 0.5
    _, token_P = torch.nonzero(fires_EN, as_tuple=True)
    return Events(token_P=token_P, start_E1=starts(fires_EN.sum(1)), context_ON=context_ON)


@pytest.fixture(scope="module")
def samples():
    return Samples(events(1), events(2), events(3))


@pytest.fixture(scope="module")
def shared() -> Literals:
    vocabulary = ["x" if token % 2 else "7" for token in range(V)]
    return build_literals(vocabulary, torch.ones(V), places=2, identities=V)[0]


def test_a_planted_rule_is_found_and_in_noise_of_its_rate_next_to_nothing_is(samples, shared):
    found_E = best_rule_f1(samples, shared, what="rules")
    assert found_E[:-NOISY].min() > 0.97
    assert 0.6 < found_E[-NOISY:].mean() < 0.8  # at best a half of the tokens that a rule says
    control = permuted_rule_f1([torch.arange(E)], [samples], shared, torch.Generator().manual_seed(0))
    rate = float(samples.held.rate_E.mean())
    assert rate / 2 < control < 4 * rate
    assert control < 0.2 * float(found_E.mean())


def test_a_sample_of_a_block_stands_for_all_that_were_searched_there(samples, shared, monkeypatch):
    monkeypatch.setattr(permuted_rules, "EXPERTS", 2)
    drawn = []

    def f1(noise, shared, *, what):
        assert torch.equal(noise.fit.count_E.sign(), noise.held.count_E.sign())
        drawn.append(len(noise.fit.count_E))
        return torch.full((drawn[-1],), 0.25 * len(drawn))

    monkeypatch.setattr(permuted_rules, "best_rule_f1", f1)
    searched = [torch.tensor([7]), torch.arange(3), torch.tensor([], dtype=torch.int64)]
    found = permuted_rule_f1(searched, [samples] * 3, shared, torch.Generator())
    assert drawn == [1, 2]
    assert found == pytest.approx((1 * 0.25 + 3 * 0.5) / 4)
    assert permuted_rule_f1(searched[2:], [samples], shared, torch.Generator()) == 0


def test_the_same_generator_draws_the_same_noise(samples, shared):
    first, second, other = (
        permuted_rule_f1([torch.arange(E)], [samples], shared, torch.Generator().manual_seed(seed))
        for seed in (3, 3, 4)
    )
    assert first == second != other
