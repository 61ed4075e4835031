"""Symbolic experts as C++ runs them: one record for each that is left, beside the experts of its cell.

A record holds all that its expert needs, so that memory is waited for once and what is dropped costs nothing:

    scale, offset, intercept, scale of v (float32) | code, row of its spline, row of its dense u, 0 (int32) |
    coefficients (K float32) | coordinates (K uint16) | v (D / 2 bytes of two int4) | zeros up to a multiple of 64

Records of T0 and T1 lie in order of their cells, those of T2 and T3 behind them. Literals are turned round: for each
place looked back and each token, which are true of it. Records are copies of tables that were checked, so that nothing
has to be looked at again as they run.
"""

# C cells, E experts, R records, X records of rules, K coordinates, D model width, L literals, G gates, V vocabulary,
# O places looked back, M memberships

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.symbol_table.checks import check_tables
from kernels.symbol_table.functions import SPLINE_CODE
from kernels.symbol_table.tables import SymbolTables, Tier

ALIGNED = 64
"""Bytes of a cache line."""


class Records(NamedTuple):
    first_C1: Tensor
    """int32: cell c holds the records first[c] to first[c + 1]."""
    record_RB: Tensor
    """uint8, as drawn above."""
    rule_X: Tensor
    """int32: the wire by which each of the last records fires."""
    gate_G: Tensor
    wire_a_G: Tensor
    wire_b_G: Tensor
    true_first_OV1: Tensor
    """int32: where the literals begin that are true of a token so many places back."""
    true_literal_M: Tensor
    """int32"""
    dense_u_FD: Tensor
    spline_low_W: Tensor
    spline_high_W: Tensor
    spline_coefficient_WK: Tensor


def records_of(tables: SymbolTables, *, places: int) -> Records:
    """Copies of what is left. ValueError names the first entry of a table that is wrong (`check_tables`)."""
    check_tables(tables, places=places)
    tier_E, cells = tables.tier_E, len(tables.cell_start_C1) - 1
    exact_E = tier_E <= Tier.T1
    by_rule_X = torch.nonzero((tier_E == Tier.T2) | (tier_E == Tier.T3))[:, 0]
    kept_R = torch.cat([torch.nonzero(exact_E)[:, 0], by_rule_X])
    before_E1 = torch.cat([exact_E.new_zeros(1), exact_E]).cumsum(0)
    true_first_OV1, true_literal_M = _true_literals(tables, places)
    return Records(
        first_C1=before_E1[tables.cell_start_C1.long()].to(torch.int32).view(cells + 1),
        record_RB=_records(tables, kept_R),
        rule_X=(len(tables.member_LV) + tables.rule_E[by_rule_X]).to(torch.int32),
        gate_G=tables.gate_G.clone(),
        wire_a_G=tables.wire_a_G.clone(),
        wire_b_G=tables.wire_b_G.clone(),
        true_first_OV1=true_first_OV1,
        true_literal_M=true_literal_M,
        dense_u_FD=tables.dense_u_FD.clone(),
        spline_low_W=tables.spline_low_W.clone(),
        spline_high_W=tables.spline_high_W.clone(),
        spline_coefficient_WK=tables.spline_coefficient_WK.clone(),
    )


def _records(tables: SymbolTables, kept_R: Tensor) -> Tensor:
    code_R = tables.code_E[kept_R].to(torch.int32)
    numbers = (tables.scale_E, tables.offset_E, tables.intercept_E, tables.v_scale_E)
    rows = (
        torch.where(code_R == SPLINE_CODE, tables.spline_row_E[kept_R], -1),
        torch.where(tables.tier_E[kept_R] == Tier.T0, tables.dense_row_E[kept_R], -1),
    )
    parts = (
        torch.stack([number_E[kept_R].float() for number_E in numbers], dim=1),
        torch.stack([code_R, *rows, torch.zeros_like(code_R)], dim=1).to(torch.int32),
        tables.coefficient_EK[kept_R],
        tables.index_EK[kept_R],
        tables.v_EB[kept_R],
    )
    record_RB = torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=1)
    return torch.nn.functional.pad(record_RB, (0, -record_RB.shape[1] % ALIGNED))


def _true_literals(tables: SymbolTables, places: int) -> tuple[Tensor, Tensor]:
    """(O, V + 1) where they begin, and (M) which they are."""
    vocabulary = tables.member_LV.shape[1]
    literal_M, token_M = torch.nonzero(tables.member_LV, as_tuple=True)
    key_M = tables.literal_offset_L[literal_M].long() * vocabulary + token_M
    count_X = torch.bincount(key_M, minlength=places * vocabulary).cumsum(0)
    first_OV1 = torch.cat([count_X.new_zeros(1), count_X])[
        torch.arange(places)[:, None] * vocabulary + torch.arange(vocabulary + 1)
    ]
    return first_OV1.to(torch.int32), literal_M[torch.argsort(key_M, stable=True)].to(torch.int32)
