"""Events: some of them taken alone are what they were, and a permutation moves them together."""

import pytest
import torch

from kernels.pairs import starts
from pipeline.symbolic.recording import Events

# N tokens, E events

E, N = 7, 101


@pytest.fixture
def happens_EN():
    """The fourth never happens."""
    happens_EN = torch.rand(E, N, generator=torch.Generator().manual_seed(0)) < 0.2
    happens_EN[3] = False
    return happens_EN


@pytest.fixture
def events(happens_EN):
    _, token_P = torch.nonzero(happens_EN, as_tuple=True)
    context_ON = torch.arange(2 * N).view(2, N)
    return Events(token_P=token_P, start_E1=starts(happens_EN.sum(1)), context_ON=context_ON)


def test_events_happen_on_the_tokens_of_their_pairs(events, happens_EN):
    assert torch.equal(events.on_tokens(), happens_EN)


@pytest.mark.parametrize("chosen", [[5, 0, 3], [3], [], [2, 2], [*range(E)]], ids=str)
def test_some_of_them_are_what_they_were_in_the_order_asked_for(events, happens_EN, chosen):
    chosen_X = torch.tensor(chosen, dtype=torch.int64)
    alone = events.of(chosen_X)
    assert torch.equal(alone.on_tokens(), happens_EN[chosen_X])
    assert torch.equal(alone.rate_E, events.rate_E[chosen_X])
    assert torch.equal(alone.expert_P, torch.repeat_interleave(torch.arange(len(chosen)), events.count_E[chosen_X]))
    value_P = torch.arange(len(events.token_P))
    for own, x in zip(value_P[events.places(chosen_X)].split(alone.count_E.tolist()), chosen, strict=True):
        assert own.tolist() == value_P[events.expert_P == x].tolist()


def test_a_permutation_moves_events_and_keeps_what_happens_together(events, happens_EN):
    moved = events.permuted(torch.Generator().manual_seed(1))
    assert torch.equal(moved.count_E, events.count_E)
    assert not torch.equal(moved.on_tokens(), happens_EN)
    together_EE, moved_EE = (on_EN.float() @ on_EN.float().T for on_EN in (happens_EN, moved.on_tokens()))
    assert torch.equal(moved_EE, together_EE)
    assert torch.equal(moved.context_ON, events.context_ON)
