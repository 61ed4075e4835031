"""Experts in order of their cells: from the cells that tokens reach to the experts that lie in them."""

# C cells, P pairs of a token and a cell, Q pairs of a token and an expert, N tokens; both in order of their tokens

import torch
from torch import Tensor

from kernels import backends
from kernels.cells import native
from kernels.cells.layout import CellStarts
from kernels.pairs import starts

__all__ = ["CellStarts", "experts_of_cells"]


def experts_of_cells(
    cell_starts: CellStarts, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q) experts, (N + 1) where each token's begin, (Q) gates, of all that the cells hold.

    Differentiable in the gates. In C++ where no gradient is wanted and the library was built.
    """
    if (library := backends.cpu_library_for(gate_P)) is not None:
        return native.experts_of_cells(library, cell_starts, cell_P, start_N1, gate_P.contiguous())
    first_P = cell_starts.at(cell_P)
    count_P = cell_starts.at(cell_P + 1) - first_P
    pair_Q = torch.repeat_interleave(torch.arange(len(count_P), device=count_P.device), count_P)
    ends_P1 = starts(count_P)
    rank_Q = torch.arange(len(pair_Q), device=pair_Q.device) - ends_P1[pair_Q]
    return first_P[pair_Q] + rank_Q, ends_P1[start_N1], gate_P[pair_Q]
