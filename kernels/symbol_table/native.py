"""`symbol_table` by the C++ library (native.cpp)."""

# N tokens, D model width, P pairs of a token and a cell, O places looked back

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer
from kernels.symbol_table.checks import refuse_value
from kernels.symbol_table.tables import SymbolTables

_SIZES = ("width", "cells", "experts", "coordinates", "dense", "gates", "literals", "vocabulary", "splines", "places")
_WHAT = (
    "start_N1", "cell_P", "gate_P", "context_ON", "cell_start_C1", "tier_E", "code_E", "index_EK", "dense_row_E",
    "rule_E", "wire_a_G", "wire_b_G", "literal_offset_L", "spline_row_E",
)  # fmt: skip
"""As native.cpp numbers what is wrong, from 1."""


class _Tables(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in SymbolTables._fields),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


class _Wrong(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("what", "at", "value", "most"))


def forward(
    library: CpuLibrary,
    x_ND: Tensor,
    cell_P: Tensor,
    start_N1: Tensor,
    gate_P: Tensor,
    context_ON: Tensor,
    tables: SymbolTables,
) -> Tensor:
    """(N, D). ValueError for the first index that is out of range, and gates that are not finite."""
    y_ND, wrong = torch.empty_like(x_ND), _Wrong()
    given = _Tables(
        *[table.data_ptr() for table in tables],
        x_ND.shape[1], tables.cell_start_C1.shape[0] - 1, *tables.index_EK.shape, tables.dense_u_FD.shape[0],
        tables.gate_G.shape[0], *tables.member_LV.shape, tables.spline_low_W.shape[0], context_ON.shape[0],
    )  # fmt: skip
    library.functions.symbol_table(
        ctypes.byref(given), pointer(x_ND), pointer(cell_P), pointer(start_N1), pointer(gate_P), pointer(context_ON),
        ctypes.c_int64(x_ND.shape[0]), ctypes.c_int64(cell_P.shape[0]), library.code,
        ctypes.c_int32(torch.get_num_threads()), pointer(y_ND), ctypes.byref(wrong),
    )  # fmt: skip
    if wrong.what:
        name = _WHAT[wrong.what - 1]
        refuse_value(name, wrong.at, None if name == "gate_P" else wrong.value, wrong.most)
    return y_ND
