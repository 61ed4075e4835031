"""`experts_of_cells` by the C++ library (native.cpp)."""

# C cells, P pairs of a token and a cell, Q pairs of a token and an expert, N tokens

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer
from kernels.cells.layout import CellStarts, shapes
from kernels.errors import Mistake


class Starts(ctypes.Structure):
    """native.h's CellStarts."""

    _fields_ = (("offset", ctypes.c_void_p), ("block_start", ctypes.c_void_p), ("wide", ctypes.c_int64))

    @classmethod
    def of(cls, cell_starts: CellStarts) -> "Starts":
        """Where these tensors lie; whoever holds it holds them. ValueError where they are none of any cells."""
        offset_C1, block_start_K = cell_starts
        fits = offset_C1.dtype in (torch.uint8, torch.int32) and block_start_K.dtype == torch.int32
        if not fits or offset_C1.ndim != 1 or block_start_K.shape != (shapes(cell_starts.cells)[1],):
            raise Mistake(
                f"cell starts got offsets of shape {tuple(offset_C1.shape)}, {offset_C1.dtype}, and starts of blocks "
                f"of shape {tuple(block_start_K.shape)}, {block_start_K.dtype}; make them with CellStarts.of"
            )
        return cls(pointer(offset_C1), pointer(block_start_K), offset_C1.dtype == torch.int32)


def experts_of_cells(
    library: CpuLibrary, cell_starts: CellStarts, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q), (N + 1) and (Q). ValueError for the first cell or start that is out of range. Gates are float32."""
    stored = Starts.of(cell_starts)
    cells, pairs, tokens = cell_starts.cells, cell_P.shape[0], start_N1.shape[0] - 1
    first_N1 = torch.empty(tokens + 1, dtype=torch.int64)
    wrong, count = ctypes.c_int64(), ctypes.c_int64()
    given = (
        ctypes.byref(stored), pointer(cell_P), pointer(start_N1), ctypes.c_int64(cells), ctypes.c_int64(pairs),
        ctypes.c_int64(tokens),
    )  # fmt: skip
    if library.functions.cells_count(*given, pointer(first_N1), ctypes.byref(count), ctypes.byref(wrong)):
        raise Mistake(
            f"experts_of_cells got {wrong.value} as a cell, or as where one or a token starts, out of range for "
            f"{cells} cells and {pairs} pairs; pass on what the router returned"
        )
    found = count.value
    expert_Q, gate_Q = torch.empty(found, dtype=torch.int64), torch.empty(found)
    library.functions.cells_fill(
        ctypes.byref(stored), pointer(cell_P), pointer(gate_P), ctypes.c_int64(pairs), pointer(expert_Q),
        pointer(gate_Q),
    )  # fmt: skip
    return expert_Q, first_N1, gate_Q
