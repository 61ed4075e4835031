"""From cells to experts against the oracle, whichever way it goes."""

import pytest
import torch

from kernels.cells import CellStarts, experts_of_cells, reference
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
    wanted = reference.experts_of_cells(cell_start_C1, cell_P, start_N1, gate_P)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            found = experts_of_cells(CellStarts.of(cell_start_C1), cell_P, start_N1, gate_P)
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_the_oracle_lists_what_a_few_cells_hold():
    cell_start_C1, cell_P = torch.tensor([0, 2, 2, 5]), torch.tensor([2, 0, 1])
    expert_Q, first_N1, gate_Q = reference.experts_of_cells(
        cell_start_C1, cell_P, torch.tensor([0, 1, 1, 3]), torch.tensor([0.5, 2.0, 9.0])
    )
    assert expert_Q.tolist() == [2, 3, 4, 0, 1]
    assert first_N1.tolist() == [0, 3, 3, 5]
    assert gate_Q.tolist() == [0.5, 0.5, 0.5, 2.0, 2.0]


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
