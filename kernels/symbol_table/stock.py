"""`symbol_table` by stock torch ops: all pairs of a tier and of a function at once."""

# N tokens, D model width, E experts, P pairs of a token and an expert, X some experts, R rows in use, L literals,
# G gates, W = L + G wires, O places looked back

import torch
from torch import Tensor

from kernels.cells import CellStarts, experts_of_cells
from kernels.expert_sum.bags import bag_sum
from kernels.packing import unpack_int4
from kernels.pairs import starts
from kernels.symbol_table.checks import refuse
from kernels.symbol_table.functions import SPLINE_CODE, apply_codes, evaluate_splines
from kernels.symbol_table.tables import SymbolTables, Tier


def forward(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> Tensor:
    """(N, D)"""
    token_P, expert_P, gate_P = firings(cell_P, start_N1, gate_P, context_ON, tables)
    order_P = torch.argsort(token_P, stable=True)
    token_P, expert_P, gate_P = token_P[order_P], expert_P[order_P], gate_P[order_P]
    magnitude_P = magnitudes(x_ND, token_P, expert_P, tables)
    row_R, local_P = torch.unique(expert_P, return_inverse=True)
    v_RD = unpack_int4(tables.v_EB[row_R]).float() * tables.v_scale_E[row_R].float()[:, None]
    first_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
    return bag_sum(v_RD, local_P, first_N1, gate_P * magnitude_P)


def firings(
    cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> tuple[Tensor, Tensor, Tensor]:
    """(P) token, expert and gate of every statement that is true, in no order."""
    tier_E = tables.tier_E
    expert_P, first_N1, gate_P = experts_of_cells(CellStarts.of(tables.cell_start_C1), cell_P, start_N1, gate_P)
    token_P = torch.repeat_interleave(torch.arange(len(start_N1) - 1), first_N1.diff())
    exact_P = tier_E[expert_P] <= Tier.T1
    logical_X = torch.nonzero((tier_E == Tier.T2) | (tier_E == Tier.T3))[:, 0]
    logic_token_P, logic_expert_P = logic_firings(logical_X, context_ON, tables)
    return (
        torch.cat([token_P[exact_P], logic_token_P]),
        torch.cat([expert_P[exact_P], logic_expert_P]),
        torch.cat([gate_P[exact_P], gate_P.new_ones(len(logic_token_P))]),
    )


def logic_firings(expert_X: Tensor, context_ON: Tensor, tables: SymbolTables) -> tuple[Tensor, Tensor]:
    """(P) token and expert wherever the gate that is an expert's rule is true."""
    if len(expert_X) == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, empty
    value_WN = wire_values(context_ON, tables)
    at_P, token_P = torch.nonzero(value_WN[len(tables.member_LV) + tables.rule_E[expert_X].long()], as_tuple=True)
    return token_P, expert_X[at_P]


def wire_values(context_ON: Tensor, tables: SymbolTables) -> Tensor:
    """(W, N) uint8: the literals, then the gates, those at a time whose wires are known. ValueError for a cycle."""
    token_LN, num_literals = context_ON[tables.literal_offset_L.long()], len(tables.member_LV)
    value_LN = tables.member_LV.gather(1, token_LN.clamp(min=0)) & (token_LN >= 0)
    a_G, b_G = tables.wire_a_G.long(), tables.wire_b_G.long()
    value_WN = torch.cat([value_LN.to(torch.uint8), value_LN.new_zeros(len(a_G), value_LN.shape[1], dtype=torch.uint8)])
    known_W = torch.arange(len(value_WN)) < num_literals
    while not bool(known_W.all()):
        next_X = torch.nonzero(~known_W[num_literals:] & known_W[a_G] & known_W[b_G])[:, 0]
        if len(next_X) == 0:
            at = int(torch.nonzero(~known_W)[0]) - num_literals
            refuse("wire_a_G and wire_b_G", f"a cycle through gate {at}", "gates whose wires come before them")
        bit_XN = 3 - (2 * value_WN[a_G[next_X]] + value_WN[b_G[next_X]])
        value_WN[num_literals + next_X] = (tables.gate_G[next_X, None] >> bit_XN) & 1
        known_W[num_literals + next_X] = True
    return value_WN


def magnitudes(x_ND: Tensor, token_P: Tensor, expert_P: Tensor, tables: SymbolTables) -> Tensor:
    """(P): scale * f(z) + offset of these experts on these tokens."""
    return magnitudes_at(arguments(x_ND, token_P, expert_P, tables), expert_P, tables)


def arguments(x_ND: Tensor, token_P: Tensor, expert_P: Tensor, tables: SymbolTables) -> Tensor:
    """(P): z of these experts on these tokens."""
    z_P = torch.empty_like(token_P, dtype=torch.float32)
    dense_P = tables.tier_E[expert_P] == Tier.T0
    u_PD = tables.dense_u_FD[tables.dense_row_E[expert_P[dense_P]].long()]
    z_P[dense_P] = (u_PD * x_ND[token_P[dense_P]]).sum(-1)
    sparse_P = ~dense_P
    index_PK = tables.index_EK[expert_P[sparse_P]].long()
    x_PK = x_ND.flatten()[token_P[sparse_P][:, None] * x_ND.shape[1] + index_PK]
    z_P[sparse_P] = (tables.coefficient_EK[expert_P[sparse_P]] * x_PK).sum(-1)
    z_P += tables.intercept_E[expert_P]
    return z_P


def magnitudes_at(z_P: Tensor, expert_P: Tensor, tables: SymbolTables) -> Tensor:
    """(P): scale * f(z) + offset of these experts at these arguments."""
    code_P = tables.code_E[expert_P]
    spline_P = code_P == SPLINE_CODE
    value_P = torch.empty_like(z_P)
    value_P[~spline_P] = apply_codes(code_P[~spline_P], z_P[~spline_P])
    splines = tables.spline_low_W, tables.spline_high_W, tables.spline_coefficient_WK
    value_P[spline_P] = evaluate_splines(*splines, tables.spline_row_E[expert_P[spline_P]].long(), z_P[spline_P])
    return tables.scale_E[expert_P] * value_P + tables.offset_E[expert_P]
