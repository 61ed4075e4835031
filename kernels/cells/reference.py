"""The oracle of `experts_of_cells`: cell by cell, expert by expert. Never optimised."""

# C cells, P pairs of a token and a cell, Q pairs of a token and an expert, N tokens

import torch
from torch import Tensor


def experts_of_cells(
    cell_start_C1: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(Q) experts, (N + 1) where each token's begin, (Q) gates, of all that the cells hold."""
    experts, gates, begins = [], [], [0]
    for first, last in zip(start_N1.tolist(), start_N1.tolist()[1:], strict=False):
        for cell, gate in zip(cell_P[first:last].tolist(), gate_P[first:last].tolist(), strict=True):
            held = range(int(cell_start_C1[cell]), int(cell_start_C1[cell + 1]))
            experts += held
            gates += len(held) * [gate]
        begins.append(len(experts))
    return (
        torch.tensor(experts, dtype=torch.int64),
        torch.tensor(begins, dtype=torch.int64),
        torch.tensor(gates, dtype=gate_P.dtype),
    )
