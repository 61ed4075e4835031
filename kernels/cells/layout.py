"""How the starts of cells are stored: a byte a cell, and an int32 a block of cells."""

# C cells, K blocks of them, P cells in any order

from typing import NamedTuple, Self

import torch
from torch import Tensor

_SHIFT = 5
BLOCK = 2**_SHIFT
"""Cells whose starts are counted from one place; native.h has the same number."""

_MOST = torch.iinfo(torch.uint8).max


class CellStarts(NamedTuple):
    """Cell c holds the experts from start c to start c + 1, where start c is block_start[c // BLOCK] + offset[c]."""

    offset_C1: Tensor
    """uint8; int32 where a block of cells holds too many experts for that, so that cells are few beside them."""
    block_start_K: Tensor
    """int32"""

    @classmethod
    def of(cls, start_C1: Tensor) -> Self:
        """Any row of int32 numbers, exactly."""
        block_start_K = start_C1[::BLOCK].to(torch.int32).clone(memory_format=torch.contiguous_format)
        offset_C1 = start_C1.to(torch.int32) - block_start_K.repeat_interleave(BLOCK)[: len(start_C1)]
        fits = len(offset_C1) == 0 or bool((offset_C1.min() >= 0) & (offset_C1.max() <= _MOST))
        return cls(offset_C1.to(torch.uint8) if fits else offset_C1, block_start_K)

    @property
    def cells(self) -> int:
        return self.offset_C1.shape[0] - 1

    def at(self, cell_P: Tensor) -> Tensor:
        """(P) int64 starts of these cells; C, one more than the last, is where that one ends."""
        return self.block_start_K[cell_P >> _SHIFT].long() + self.offset_C1[cell_P]

    def row(self) -> Tensor:
        """(C + 1) int32: all of them, written out."""
        return self.block_start_K.repeat_interleave(BLOCK)[: len(self.offset_C1)] + self.offset_C1


def shapes(cells: int) -> tuple[int, int]:
    """Offsets, and blocks, of so many cells."""
    return cells + 1, cells // BLOCK + 1


def index_bytes(cells: int) -> int:
    """Of so many cells where no block of them holds more than 255 experts."""
    offsets, blocks = shapes(cells)
    return offsets + 4 * blocks
