"""`experts_of_cells` by the C++ library (native.cpp)."""

# C cells, P pairs of a token and a cell, Q pairs of a token and an expert, N tokens

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer


def experts_of_cells(
    library: CpuLibrary, cell_start_C1: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q), (N + 1) and (Q). ValueError for the first cell or start that is out of range. Gates are float32."""
    cells, pairs, tokens = cell_start_C1.shape[0] - 1, cell_P.shape[0], start_N1.shape[0] - 1
    first_N1 = torch.empty(tokens + 1, dtype=torch.int64)
    wrong, count = ctypes.c_int64(), ctypes.c_int64()
    given = (
        pointer(cell_start_C1), pointer(cell_P), pointer(start_N1), ctypes.c_int64(cells), ctypes.c_int64(pairs),
        ctypes.c_int64(tokens),
    )  # fmt: skip
    if library.functions.cells_count(*given, pointer(first_N1), ctypes.byref(count), ctypes.byref(wrong)):
        raise ValueError(
            f"experts_of_cells got {wrong.value} as a cell, or as where one or a token starts, out of range for "
            f"{cells} cells and {pairs} pairs; pass on what the router returned"
        )
    found = count.value
    expert_Q, gate_Q = torch.empty(found, dtype=torch.int64), torch.empty(found)
    library.functions.cells_fill(
        pointer(cell_start_C1), pointer(cell_P), pointer(gate_P), ctypes.c_int64(pairs), pointer(expert_Q),
        pointer(gate_Q),
    )  # fmt: skip
    return expert_Q, first_N1, gate_Q
