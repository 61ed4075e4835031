"""The oracle of `symbol_table`: expert by expert, number by number, in double precision. Never optimised."""

# N tokens, D model width, P pairs of a token and a cell, O places looked back

import math

import torch
from torch import Tensor

from kernels.packing import unpack_int4
from kernels.symbol_table.functions import KNOTS, SPLINE_CODE
from kernels.symbol_table.tables import SymbolTables, Tier

_FUNCTIONS = (
    lambda z: 1.0,
    lambda z: z,
    lambda z: z * z,
    lambda z: max(z, 0.0),
    lambda z: max(z, 0.0) ** 2,
    lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    lambda z: z / (1 + math.exp(-z)),
    lambda z: 1 / (1 + math.exp(-z)),
    math.tanh,
    lambda z: math.log(1 + math.exp(z)),
    abs,
    lambda z: math.exp(-z * z),
    lambda z: z**3,
    lambda z: z**4,
    lambda z: z**5,
    lambda z: math.copysign(math.sqrt(abs(z)), z),
    lambda z: abs(z) ** 1.5,
    lambda z: math.exp(min(z, 10.0)),
    lambda z: math.copysign(math.log(1 + abs(z)), z),
    math.sin,
    math.cos,
    math.atan,
)


def symbol_table(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> Tensor:
    """(N, D) float64: for each token the sum of gate * (scale * f(z) + offset) * v over the experts that fire."""
    v_ED = unpack_int4(tables.v_EB).double() * tables.v_scale_E.double()[:, None]
    y_ND = torch.zeros(x_ND.shape, dtype=torch.float64)
    for n, x_D in enumerate(x_ND.double()):
        for p in range(int(start_N1[n]), int(start_N1[n + 1])):
            cell = int(cell_P[p])
            for e in range(int(tables.cell_start_C1[cell]), int(tables.cell_start_C1[cell + 1])):
                if tables.tier_E[e] <= Tier.T1:
                    y_ND[n] += float(gate_P[p]) * magnitude(e, x_D, tables) * v_ED[e]
        for e, tier in enumerate(tables.tier_E.tolist()):
            output = len(tables.member_LV) + int(tables.rule_E[e])
            if tier in (Tier.T2, Tier.T3) and wire(output, context_ON[:, n], tables):
                y_ND[n] += magnitude(e, x_D, tables) * v_ED[e]
    return y_ND


def wire(which: int, context_O: Tensor, tables: SymbolTables) -> bool:
    """A literal, or the output of a gate."""
    gate = which - len(tables.member_LV)
    if gate < 0:
        return literal(which, context_O, tables)
    a, b = (wire(int(inputs[gate]), context_O, tables) for inputs in (tables.wire_a_G, tables.wire_b_G))
    return bool((int(tables.gate_G[gate]) >> (3 - (2 * a + b))) & 1)


def literal(which: int, context_O: Tensor, tables: SymbolTables) -> bool:
    token = int(context_O[int(tables.literal_offset_L[which])])
    return token >= 0 and bool(tables.member_LV[which, token])


def magnitude(e: int, x_D: Tensor, tables: SymbolTables) -> float:
    """scale * f(z) + offset of expert e."""
    if tables.tier_E[e] == Tier.T0:
        z = float(tables.dense_u_FD[int(tables.dense_row_E[e])].double() @ x_D)
    else:
        z = float(tables.coefficient_EK[e].double() @ x_D[tables.index_EK[e].long()])
    z += float(tables.intercept_E[e])
    code = int(tables.code_E[e])
    value = spline(int(tables.spline_row_E[e]), z, tables) if code == SPLINE_CODE else _FUNCTIONS[code](z)
    return float(tables.scale_E[e]) * value + float(tables.offset_E[e])


def spline(row: int, z: float, tables: SymbolTables) -> float:
    """By the Cox-de Boor recursion over uniform knots; constant outside its range."""
    low, high = float(tables.spline_low_W[row]), float(tables.spline_high_W[row])
    u = min(max((z - low) / (high - low), 0.0), 1.0 - 1e-15) * (KNOTS - 1)

    def basis(i: int, degree: int) -> float:
        """Of the knots i - 3, i - 2, ... in units of their distance."""
        at = u - (i - 3)
        if degree == 0:
            return float(0 <= at < 1)
        return (at * basis(i, degree - 1) + (degree + 1 - at) * basis(i + 1, degree - 1)) / degree

    return sum(float(c) * basis(i, 3) for i, c in enumerate(tables.spline_coefficient_WK[row]))
