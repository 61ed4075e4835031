"""The best short statement about tokens for each of many events at once: a literal, or one gate of two.

Events are rare, so all is counted on the tokens where they happen; how often literals are true of other tokens follows
from counts of tokens and of pairs of neighbours, without going over the sample for each event.
"""

# N tokens, E events, P pairs (an event and a token), L literals, S shared literals, V vocabulary, C candidates an event

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.expert_sum.bags import bag_sum
from pipeline.models.literals import Literals
from pipeline.symbolic.recording import Events
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4, best_gates

CANDIDATES = 16
LARGEST_SET = 12
"""Tokens that a literal of an event's own may name."""
WORTH_A_SECOND_F1 = 0.01
"""What a second literal must add on the fitting sample."""
IS_A, XOR, OR = 3, 6, 7
"""Gates by their numbers: the first literal, one of the two, any of the two."""


@dataclass(frozen=True, slots=True)
class TokenStatements:
    """For every event one gate of two literals, which are the same where one is enough."""

    gate_E: Tensor
    a_E: Tensor
    b_E: Tensor
    f1_E: Tensor
    """Against the event, on the checking sample; chosen on the other."""


def with_own_sets(events: Events, shared: Literals, largest: int = LARGEST_SET) -> Literals:
    """The shared literals, then each event's own set of current tokens, then each one's own set of previous tokens."""
    own = [own_sets(events, back, shared.member_LV.shape[1], largest) for back in (0, 1)]
    offsets = [torch.full((len(events.count_E),), back, dtype=torch.uint8) for back in (0, 1)]
    return Literals(torch.cat([shared.member_LV, *own]), torch.cat([shared.offset_L, *offsets]))


def own_sets(events: Events, back: int, vocabulary: int, largest: int = LARGEST_SET) -> Tensor:
    """(E, V) bool: the set of at most `largest` tokens, `back` places back, that has the best F1 with the firing.

    Values of one token exclude each other, so taking them by precision and cutting at the best prefix is exact.
    """
    fires_EV, token_N = token_counts(events, back, vocabulary), events.context_ON[back]
    all_V = torch.bincount(token_N[token_N >= 0], minlength=vocabulary).float()
    precision_EV = fires_EV / all_V.clamp(min=1)
    # A token seen once or twice says little: shrink its precision towards 0.
    rank = (precision_EV * all_V / (all_V + 2)).topk(min(largest, vocabulary), dim=1).indices
    hits_EK = fires_EV.gather(1, rank).cumsum(1)
    true_EK = all_V[rank].cumsum(1)
    f1_EK = 2 * hits_EK / (true_EK + events.count_E[:, None]).clamp(min=1)
    length_E = f1_EK.argmax(1)
    kept = torch.arange(rank.shape[1]) <= length_E[:, None]
    return torch.zeros_like(fires_EV, dtype=torch.bool).scatter(1, rank, kept)


def token_counts(events: Events, back: int, vocabulary: int) -> Tensor:
    """(E, V) float: how often each event happens where the token so many places back is this one."""
    token_P = events.context_ON[back][events.token_P]
    known_P = token_P >= 0
    pair_P = events.expert_P[known_P] * vocabulary + token_P[known_P]
    num_events = len(events.count_E)
    return torch.bincount(pair_P, minlength=num_events * vocabulary).view(num_events, vocabulary).float()


def candidates(events: Events, shared: Literals, literals: Literals) -> tuple[Tensor, Tensor]:
    """(E, C) literals with the best F1 for each expert, its own two sets first; (E) the best F1.

    `literals` are the shared ones, then everyone's set of current tokens, then everyone's of previous ones.
    """
    num_experts, num_shared = len(events.count_E), len(shared.offset_L)
    value_NL = shared.values(events.context_ON).T.float().contiguous()
    ones_P = torch.ones(len(events.token_P))
    hits_EL = bag_sum(value_NL, events.token_P, events.start_E1, ones_P)
    f1_EL = 2 * hits_EL / (value_NL.sum(0) + events.count_E[:, None]).clamp(min=1)
    best = f1_EL.topk(min(CANDIDATES - 2, num_shared), dim=1)
    own_E2 = num_shared + torch.stack([torch.arange(num_experts), num_experts + torch.arange(num_experts)], dim=1)
    own_f1 = []
    for back in (0, 1):
        member_EV = literals.member_LV[own_E2[:, back]]
        token_P = events.context_ON[back][events.token_P]
        hit_P = member_EV[events.expert_P, token_P.clamp(min=0)] & (token_P >= 0)
        hits_E = torch.bincount(events.expert_P[hit_P], minlength=num_experts)
        token_N = events.context_ON[back]
        all_V = torch.bincount(token_N[token_N >= 0], minlength=member_EV.shape[1]).float()
        true_E = member_EV.float() @ all_V
        own_f1.append(2 * hits_E / (true_E + events.count_E).clamp(min=1))
    strongest_E = torch.stack([best.values[:, 0], *own_f1]).amax(0)
    return torch.cat([own_E2, best.indices], dim=1), strongest_E


def best_statements(fit: Events, check: Events, literals: Literals, candidate_EC: Tensor) -> TokenStatements:
    """The gate of two candidates with the best F1 on `fit`, judged on `check`.

    `candidate_EC` is as from `candidates`: an event's own two sets first, then shared literals.
    """
    fired_ECC, count_ECC = _fired(fit, literals, candidate_EC), _counts(fit, literals, candidate_EC)
    total_E = fit.count_E.float()
    position_EC = torch.arange(candidate_EC.shape[1]).expand(candidate_EC.shape)
    best = best_gates(fired_ECC, total_E, count_ECC, position_EC, fit.num_tokens)
    fired_EC, count_EC = fired_ECC.diagonal(dim1=1, dim2=2), count_ECC.diagonal(dim1=1, dim2=2)
    single_E, at_E = _f1(fired_EC, count_EC, total_E[:, None]).max(1)
    alone_E = best.score_E < single_E + WORTH_A_SECOND_F1
    # Of literals that exclude each other, such as two tokens of one place, "or" says the same as "either".
    apart_E = count_ECC[torch.arange(len(at_E)), best.a_E, best.b_E] == 0
    kind_E = torch.where(apart_E & (best.kind_E == XOR), OR, best.kind_E)
    gate_E = torch.where(alone_E, IS_A, kind_E)
    a_E, b_E = torch.where(alone_E, at_E, best.a_E), torch.where(alone_E, at_E, best.b_E)
    places_E2 = torch.stack([a_E, b_E], dim=1)
    return TokenStatements(
        gate_E=gate_E,
        a_E=candidate_EC.gather(1, a_E[:, None])[:, 0],
        b_E=candidate_EC.gather(1, b_E[:, None])[:, 0],
        f1_E=_judged(check, literals, candidate_EC, gate_E, places_E2),
    )


def _judged(check: Events, literals: Literals, candidate_EC: Tensor, gate_E: Tensor, places_E2: Tensor) -> Tensor:
    """(E) F1 of gates of the candidates at these places on another sample."""
    value_P2 = _values_of_pairs(check, literals, candidate_EC).gather(1, places_E2[check.expert_P])
    true_P = GATE_OUTPUT_G4[gate_E[check.expert_P], 2 * value_P2[:, 0].long() + value_P2[:, 1].long()]
    hits_E = torch.bincount(check.expert_P[true_P], minlength=len(gate_E))
    row_E = torch.arange(len(gate_E))
    count_ECC = _counts(check, literals, candidate_EC)
    a_E, b_E, both_E = (
        count_ECC[row_E, places_E2[:, i], places_E2[:, j]] for i, j in ((0, 0), (1, 1), (0, 1))
    )  # fmt: skip
    of_inputs_E4 = torch.stack([check.num_tokens - a_E - b_E + both_E, b_E - both_E, a_E - both_E, both_E], dim=1)
    count_E = (of_inputs_E4 * GATE_OUTPUT_G4[gate_E]).sum(1)
    return _f1(hits_E, count_E, check.count_E)


def _f1(hits: Tensor, stated: Tensor, happened: Tensor) -> Tensor:
    return 2 * hits / (stated + happened).clamp(min=1)


def _values_of_pairs(events: Events, literals: Literals, candidate_EC: Tensor) -> Tensor:
    """(P, C) bool: whether each event's candidates are true of the tokens on which it happens."""
    own = [_own_values(events, literals, candidate_EC[:, back], back) for back in (0, 1)]
    shared_L = torch.unique(candidate_EC[:, 2:])
    value_NL = literals.values(events.context_ON, shared_L).T.contiguous()
    column_EC = torch.searchsorted(shared_L, candidate_EC[:, 2:].contiguous())
    at_PC = events.token_P[:, None] * len(shared_L) + column_EC[events.expert_P]
    return torch.cat([torch.stack(own, dim=1), value_NL.flatten()[at_PC]], dim=1)


def _own_values(events: Events, literals: Literals, own_E: Tensor, back: int) -> Tensor:
    token_P = events.context_ON[back][events.token_P]
    vocabulary = literals.member_LV.shape[1]
    at_P = own_E[events.expert_P] * vocabulary + token_P.clamp(min=0)
    return literals.member_LV.flatten()[at_P] & (token_P >= 0)


def _fired(events: Events, literals: Literals, candidate_EC: Tensor) -> Tensor:
    """(E, C, C): how often each event happens where both candidates are true."""
    value_PC = _values_of_pairs(events, literals, candidate_EC).float()
    pair_P = torch.arange(len(value_PC))
    return torch.stack(
        [bag_sum(value_PC, pair_P, events.start_E1, value_PC[:, c].contiguous()) for c in range(value_PC.shape[1])],
        dim=1,
    )


def _counts(events: Events, literals: Literals, candidate_EC: Tensor) -> Tensor:
    """(E, C, C): of how many tokens both candidates are true, whether the event happens or not."""
    context_ON, vocabulary = events.context_ON, literals.member_LV.shape[1]
    shared_S = torch.unique(candidate_EC[:, 2:])
    column_EC = torch.searchsorted(shared_S, candidate_EC[:, 2:].contiguous())
    value_NS = literals.values(context_ON, shared_S).T.float()
    count_SS = value_NS.T @ value_NS
    count_ECC = count_SS.new_zeros(*candidate_EC.shape, candidate_EC.shape[1])
    count_ECC[:, 2:, 2:] = count_SS[column_EC[:, :, None], column_EC[:, None, :]]
    own = [literals.member_LV[candidate_EC[:, back]].float() for back in (0, 1)]
    for back in (0, 1):
        known_N = context_ON[back] >= 0
        token_N = context_ON[back][known_N]
        with_shared_VS = value_NS.new_zeros(vocabulary, len(shared_S)).index_add(0, token_N, value_NS[known_N])
        count_EC = (own[back] @ with_shared_VS).gather(1, column_EC)
        count_ECC[:, back, 2:] = count_ECC[:, 2:, back] = count_EC
        count_ECC[:, back, back] = own[back] @ torch.bincount(token_N, minlength=vocabulary).float()
    known_N = context_ON[1] >= 0
    neighbours_VV = torch.sparse_coo_tensor(
        context_ON[:2, known_N].flip(0), torch.ones(int(known_N.sum())), (vocabulary, vocabulary), check_invariants=True
    )
    count_E = ((neighbours_VV @ own[0].T).T * own[1]).sum(1)
    count_ECC[:, 0, 1] = count_ECC[:, 1, 0] = count_E
    return count_ECC
