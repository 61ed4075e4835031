"""Symbolic experts as C++ runs them: one record for each that is left, beside the experts of its cell.

A record holds all that its expert needs, so that memory is waited for once and what is dropped costs nothing:

    scale, offset, intercept, scale of v (float32) | code, row of its spline, row of its dense u, 0 (int32) |
    coefficients (K float32) | coordinates (K uint16) | v (D / 2 bytes of two int4) | zeros up to a multiple of 64

Records of T0 and T1 lie in order of their cells. Behind them lie those whose rule is one literal, found by the
token that makes it true, and last those of longer rules, with the gates that these need. Records are copies of tables
that were checked, so that nothing has to be looked at again as they run.
"""

# C cells, E experts, R records, X records of longer rules, K coordinates, D model width, L literals, G gates,
# W = L + G wires, V vocabulary, O places looked back, M memberships

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.symbol_table.checks import check_tables
from kernels.symbol_table.functions import SPLINE_CODE
from kernels.symbol_table.tables import SymbolTables, Tier

ALIGNED = 64
"""Bytes of a cache line."""

PASSES_ON_A, PASSES_ON_B = 3, 5
"""Gates that are one of their inputs."""


class Records(NamedTuple):
    first_C1: Tensor
    """int32: cell c holds the records first[c] to first[c + 1]."""
    record_RB: Tensor
    """uint8, as drawn above."""
    spoken_first_OV1: Tensor
    """int32: where the records begin that fire where a token stands so many places back."""
    spoken_M: Tensor
    """int32: which they are."""
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
    num_literals: int
    """How many the gates read."""


class _Circuit(NamedTuple):
    """The gates that some rules need, renumbered, and the literals that these read."""

    literal_L: Tensor
    """Which of the tables' literals."""
    gate_G: Tensor
    wire_a_G: Tensor
    wire_b_G: Tensor
    rule_X: Tensor


def records_of(tables: SymbolTables, *, places: int) -> Records:
    """Copies of what is left. ValueError names the first entry of a table that is wrong (`check_tables`)."""
    check_tables(tables, places=places)
    num_literals, exact_E = len(tables.member_LV), tables.tier_E <= Tier.T1
    exact_X = torch.nonzero(exact_E)[:, 0]
    ruled_X = torch.nonzero((tables.tier_E == Tier.T2) | (tables.tier_E == Tier.T3))[:, 0]
    source_W = _sources(tables)
    wire_X = source_W[num_literals + tables.rule_E[ruled_X].long()]
    spoken_X = wire_X < num_literals
    circuit = _circuit(tables, source_W, wire_X[~spoken_X])
    before_E1 = torch.cat([exact_E.new_zeros(1), exact_E]).cumsum(0)
    spoken_first_OV1, said_M = _by_token(tables, wire_X[spoken_X], places)
    true_first_OV1, true_literal_M = _by_token(tables, circuit.literal_L, places)
    return Records(
        first_C1=before_E1[tables.cell_start_C1.long()].to(torch.int32),
        record_RB=_records(tables, torch.cat([exact_X, ruled_X[spoken_X], ruled_X[~spoken_X]])),
        spoken_first_OV1=spoken_first_OV1,
        spoken_M=len(exact_X) + said_M,
        rule_X=circuit.rule_X,
        gate_G=circuit.gate_G,
        wire_a_G=circuit.wire_a_G,
        wire_b_G=circuit.wire_b_G,
        true_first_OV1=true_first_OV1,
        true_literal_M=true_literal_M,
        dense_u_FD=tables.dense_u_FD.clone(),
        spline_low_W=tables.spline_low_W.clone(),
        spline_high_W=tables.spline_high_W.clone(),
        spline_coefficient_WK=tables.spline_coefficient_WK.clone(),
        num_literals=len(circuit.literal_L),
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


def _sources(tables: SymbolTables) -> Tensor:
    """(W) the wire that each is: itself, or what its gate passes on."""
    num_literals = len(tables.member_LV)
    source = list(range(num_literals + len(tables.gate_G)))
    wires = zip(tables.gate_G.tolist(), tables.wire_a_G.tolist(), tables.wire_b_G.tolist(), strict=True)
    for gate, (kind, a, b) in enumerate(wires):
        if kind in (PASSES_ON_A, PASSES_ON_B):
            source[num_literals + gate] = source[a if kind == PASSES_ON_A else b]
    return torch.tensor(source, dtype=torch.int64)


def _circuit(tables: SymbolTables, source_W: Tensor, output_X: Tensor) -> _Circuit:
    num_literals = len(tables.member_LV)
    a_G, b_G = (source_W[wire_G.long()] for wire_G in (tables.wire_a_G, tables.wire_b_G))
    needed_W = torch.zeros(len(source_W), dtype=torch.bool)
    needed_W[output_X] = True
    for gate in range(len(a_G) - 1, -1, -1):  # what a gate reads stands before it
        if needed_W[num_literals + gate]:
            needed_W[a_G[gate]] = needed_W[b_G[gate]] = True
    number_W = (needed_W.cumsum(0) - 1).to(torch.int32)
    kept_G = torch.nonzero(needed_W[num_literals:])[:, 0]
    return _Circuit(
        literal_L=torch.nonzero(needed_W[:num_literals])[:, 0],
        gate_G=tables.gate_G[kept_G],
        wire_a_G=number_W[a_G[kept_G]],
        wire_b_G=number_W[b_G[kept_G]],
        rule_X=number_W[output_X],
    )


def _by_token(tables: SymbolTables, literal_X: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """(O, V + 1) where the literals begin that a token so many places back makes true, and (M) which of the X."""
    vocabulary = tables.member_LV.shape[1]
    at_M, token_M = torch.nonzero(tables.member_LV[literal_X], as_tuple=True)
    key_M = tables.literal_offset_L[literal_X[at_M]].long() * vocabulary + token_M
    count_X = torch.bincount(key_M, minlength=places * vocabulary).cumsum(0)
    first_OV1 = torch.cat([count_X.new_zeros(1), count_X])[
        torch.arange(places)[:, None] * vocabulary + torch.arange(vocabulary + 1)
    ]
    return first_OV1.to(torch.int32), at_M[torch.argsort(key_M, stable=True)].to(torch.int32)
