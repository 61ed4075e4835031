"""From cells to experts: what a loop over cells finds, whichever way it goes."""

import pytest
import torch

from kernels.cells import CellStarts, experts_of_cells
from kernels.pairs import starts

# C cells, P pairs of a token and a cell, Q pairs of a token and an expert, N tokens
CELLS = 75

pytestmark = pytest.mark.usefixtures("cpu_path")


def case(tokens, seed=0, most=4):
    """Cells in three blocks, each of fewer experts than `most`."""
    generator = torch.Generator().manual_seed(seed)
    cell_start_C1 = starts(torch.randint(most, (CELLS,), generator=generator)).to(torch.int32)
    start_N1 = starts(torch.randint(5, (tokens,), generator=generator))
    cell_P = torch.randint(CELLS, (int(start_N1[-1]),), generator=generator)
    return cell_start_C1, cell_P, start_N1, torch.rand(len(cell_P), generator=generator)


@pytest.mark.parametrize(("most", "dtype"), [(4, torch.uint8), (90, torch.int32)])
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_every_expert_of_a_cell_is_reached_with_the_cells_gate(tokens, most, dtype):
    cell_start_C1, cell_P, start_N1, gate_P = case(tokens, most=most)
    assert CellStarts.of(cell_start_C1).offset_C1.dtype == dtype
    wanted, begins = [], [0]
    for n in range(tokens):
        for p in range(int(start_N1[n]), int(start_N1[n + 1])):
            cell = int(cell_P[p])
            wanted += [(e, float(gate_P[p])) for e in range(int(cell_start_C1[cell]), int(cell_start_C1[cell + 1]))]
        begins.append(len(wanted))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            expert_Q, first_N1, gate_Q = experts_of_cells(CellStarts.of(cell_start_C1), cell_P, start_N1, gate_P)
        assert list(zip(expert_Q.tolist(), gate_Q.tolist(), strict=True)) == wanted
        assert first_N1.tolist() == begins
        assert (expert_Q.dtype, first_N1.dtype, gate_Q.dtype) == (torch.int64, torch.int64, torch.float32)


def test_gradients_reach_the_gates():
    cell_start_C1, cell_P, start_N1, gate_P = case(7)
    gate_Q = experts_of_cells(CellStarts.of(cell_start_C1), cell_P, start_N1, gate_P.requires_grad_())[2]
    (gradient_P,) = torch.autograd.grad(gate_Q.sum(), gate_P)
    assert torch.equal(gradient_P, cell_start_C1.diff()[cell_P].float())


@torch.no_grad()
def test_cells_and_starts_out_of_range_are_refused(cpu_path):
    if cpu_path == "stock":
        pytest.skip("torch's own ops bound their indices")
    for name, at, value in (("cell", 2, CELLS), ("cell", 0, -1), ("start", 7, 1), ("start", 3, 99), ("start", 0, 1)):
        cell_start_C1, cell_P, start_N1, gate_P = case(7)
        (cell_P if name == "cell" else start_N1)[at] = value
        with pytest.raises(ValueError, match="out of range"):
            experts_of_cells(CellStarts.of(cell_start_C1), cell_P, start_N1, gate_P)
