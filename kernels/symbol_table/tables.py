"""What a layer of symbolic experts consists of: tables of numbers, and nothing that is evaluated as text.

Expert e lies in one cell of the key grid and is of one tier. Where it fires with gate g it adds g * m * v_e, where
m = scale * f(z) + offset and f is a function code (`functions.py`). Tiers T0 and T1 fire with the cell, with the
router's gate; T2 and T3 wherever gate rule_e of the layer's circuit is true, with gate 1; T4 never. z is dense for T0,
dense_u[dense_row] . x + intercept, and for the others sum_k coefficient_k * x[index_k] + intercept.

The circuit is one list of two-input gates for all experts of the layer. Wire w is literal w, or from the number of
literals on the output of gate w - L, which must stand before the gate that reads it: no list holds a cycle.
"""

# D model width, E experts, C cells, K coordinates of a formula or KNOTS + 2 of a spline, F experts with dense u,
# L literals, G gates, V vocabulary, W experts with a spline; B = D / 2 bytes of a packed row, or windows of T tokens

from enum import IntEnum
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.symbol_table.functions import KNOTS


class Tier(IntEnum):
    """How an expert is written down, from exact to dropped. T1 to T3 are what a person can read."""

    T0 = 0
    """Exact: dense u, exact firing."""
    T1 = 1
    """Function of few coordinates, exact firing."""
    T2 = 2
    """Logic over token literals decides the firing, a function of few coordinates the magnitude."""
    T3 = 3
    """Logic alone, constant magnitude."""
    T4 = 4
    """Dropped."""


class SymbolTables(NamedTuple):
    cell_start_C1: Tensor
    """int32: cell c holds the experts cell_start[c] to cell_start[c + 1]."""
    tier_E: Tensor
    code_E: Tensor
    scale_E: Tensor
    offset_E: Tensor
    index_EK: Tensor
    coefficient_EK: Tensor
    intercept_E: Tensor
    dense_row_E: Tensor
    dense_u_FD: Tensor
    rule_E: Tensor
    """The gate that says when an expert of tier T2 or T3 fires."""
    gate_G: Tensor
    """Bit 3 - (2 a + b) of the number is the gate's output for (a, b), as difflogic numbers them."""
    wire_a_G: Tensor
    wire_b_G: Tensor
    member_LV: Tensor
    """bool: literal l is true of a token iff the token literal_offset[l] places back is in this set."""
    literal_offset_L: Tensor
    spline_row_E: Tensor
    spline_low_W: Tensor
    spline_high_W: Tensor
    spline_coefficient_WK: Tensor
    v_EB: Tensor
    """Two int4 a byte (kernels/packing.py)."""
    v_scale_E: Tensor


def context_of(tokens_BT: Tensor, places: int) -> Tensor:
    """(places, B * T): the token 0, 1, ... places back within its window, -1 before the beginning."""
    batch, length = tokens_BT.shape
    before_BX = tokens_BT.new_full((batch, places - 1), -1)
    return (
        torch.cat([before_BX, tokens_BT], dim=1)
        .unfold(1, length, 1)
        .permute(1, 0, 2)
        .flip(0)
        .reshape(places, batch * length)
        .contiguous()
    )


@cache
def shapes(
    *,
    d_model: int,
    experts: int,
    coordinates: int,
    dense: int,
    gates: int,
    literals: int,
    vocabulary: int,
    splines: int,
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of every table but cell_start_C1, by name, in their order."""
    return {
        "tier_E": ((experts,), torch.uint8),
        "code_E": ((experts,), torch.uint8),
        "scale_E": ((experts,), torch.float32),
        "offset_E": ((experts,), torch.float32),
        "index_EK": ((experts, coordinates), torch.int16),
        "coefficient_EK": ((experts, coordinates), torch.float32),
        "intercept_E": ((experts,), torch.float32),
        "dense_row_E": ((experts,), torch.int32),
        "dense_u_FD": ((dense, d_model), torch.float32),
        "rule_E": ((experts,), torch.int32),
        "gate_G": ((gates,), torch.uint8),
        "wire_a_G": ((gates,), torch.int32),
        "wire_b_G": ((gates,), torch.int32),
        "member_LV": ((literals, vocabulary), torch.bool),
        "literal_offset_L": ((literals,), torch.uint8),
        "spline_row_E": ((experts,), torch.int32),
        "spline_low_W": ((splines,), torch.float32),
        "spline_high_W": ((splines,), torch.float32),
        "spline_coefficient_WK": ((splines, KNOTS + 2), torch.float32),
        "v_EB": ((experts, d_model // 2), torch.uint8),
        "v_scale_E": ((experts,), torch.float16),
    }
