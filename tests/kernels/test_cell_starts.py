"""How the starts of cells are stored: every row comes back, and how many bytes it takes."""

import pytest
import torch

from kernels.cells import CellStarts
from kernels.cells.layout import BLOCK, index_bytes
from kernels.pairs import starts

INT32 = torch.iinfo(torch.int32)


def bytes_of(stored):
    return sum(tensor.numel() * tensor.element_size() for tensor in stored)


@pytest.mark.parametrize("cells", [1, 31, 32, 33, 63, 64, 65, 1000])
@pytest.mark.parametrize("most", [1, 2, 9, 300])
def test_any_starts_come_back_whole_and_one_by_one(cells, most):
    generator = torch.Generator().manual_seed(cells + most)
    start_C1 = starts(torch.randint(most, (cells,), generator=generator))
    stored = CellStarts.of(start_C1)
    assert stored.cells == cells
    assert (stored.row().dtype, stored.row().tolist()) == (torch.int32, start_C1.tolist())
    any_P = torch.randint(cells + 1, (50,), generator=generator)
    assert stored.at(any_P).tolist() == [int(start_C1[cell]) for cell in any_P.tolist()]


@pytest.mark.parametrize("row", [[5, 4, 3], [INT32.min, 0, INT32.max], [0, 255], [0, 256], [-1, 7, 7]], ids=str)
def test_rows_that_do_not_rise_come_back_too_so_that_a_damaged_one_is_told(row):
    assert CellStarts.of(torch.tensor(row)).row().tolist() == row


def test_offsets_take_a_byte_up_to_255_experts_before_a_blocks_last_cell():
    counts = torch.zeros(BLOCK, dtype=torch.int64)
    counts[3] = 255
    counts[-1] = 10**6  # of the last cell, whose end is the next block's start
    assert CellStarts.of(starts(counts)).offset_C1.dtype == torch.uint8
    counts[3] = 256
    assert CellStarts.of(starts(counts)).offset_C1.dtype == torch.int32


@pytest.mark.parametrize(("cells", "wanted"), [(1, 2 + 4), (31, 32 + 4), (32, 33 + 8), (2**20, 2**20 + 1 + 4 * 32769)])
def test_bytes_are_one_a_cell_and_four_a_block(cells, wanted):
    assert index_bytes(cells) == bytes_of(CellStarts.of(torch.arange(cells + 1))) == wanted
