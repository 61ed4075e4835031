"""Where the experts of a block fire on a sample of tokens, and how much of its output each makes."""

# N tokens, D model width, E experts, P and Q pairs (a token and an expert)

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.symbol_table.tables import context_of
from pipeline.models.symbols import SymbolExperts, SymbolRouting
from pipeline.symbolic.tiers import Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class Firings:
    """Where the experts of a block fire on a sample of tokens, and with what gate * magnitude."""

    token_P: Tensor
    expert_P: Tensor
    strength_P: Tensor


@torch.no_grad()
def firings(experts: SymbolExperts, x_ND: Tensor, routing: SymbolRouting) -> Firings:
    """Every firing of the block; heads that reach one expert for one token add up."""
    expert_P, start_N1, gate_P = experts.index(routing.cells)
    token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
    exact_P = experts.tier_E[expert_P] <= Tier.T1
    by_logic_X = torch.nonzero((experts.tier_E == Tier.T2) | (experts.tier_E == Tier.T3))[:, 0]
    logic_token_P, logic_expert_P = experts.logic_firings(
        by_logic_X, context_of(routing.tokens_BT, experts.spec.places)
    )
    key_P = torch.cat([token_P[exact_P], logic_token_P]) * len(experts.tier_E)
    key_P += torch.cat([expert_P[exact_P], logic_expert_P])
    gates_P = torch.cat([gate_P[exact_P], gate_P.new_ones(len(logic_token_P))])
    key_Q, where_P = torch.unique(key_P, return_inverse=True)
    gate_Q = gate_P.new_zeros(len(key_Q)).index_add(0, where_P, gates_P)
    token_Q, expert_Q = key_Q // len(experts.tier_E), key_Q % len(experts.tier_E)
    strength_Q = gate_Q * experts.magnitudes(x_ND, token_Q, expert_Q)
    return Firings(token_P=token_Q, expert_P=expert_Q, strength_P=strength_Q)


def output_energies(experts: SymbolExperts, fired: Firings) -> Tensor:
    """(E) the squared length of what each expert added, summed over its firings."""
    strength2_E = torch.zeros(len(experts.tier_E)).index_add(0, fired.expert_P, fired.strength_P.square())
    return strength2_E * experts.v.rows(torch.arange(len(experts.tier_E))).square().sum(1)
