"""What the C++ router leaves for the C++ experts: one block of words. Tensors are cut from it when they are asked for.

In words of eight bytes, for N tokens, P pairs that fire and Q scores that pass:

    start (N + 1) | key_start (N + 1) | cell (P) | in half words: gate (P) | score (Q) | log_gate (Q) | key_gate (Q)

kernels/native.h reads the same drawing (`Routing`).
"""

# N tokens, P pairs of a token and a cell, Q scores that pass

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.jump_router.tables import Fired


@dataclass(slots=True)
class Packed:
    words: Tensor
    """int64, at least as many as are drawn above."""
    tokens: int
    pairs: int
    keys: int
    sizes: tuple[int, int, int]
    """Heads, rows and columns of the router: cells lie below rows * columns, scores below heads * (rows + columns)."""

    @property
    def fired(self) -> Fired:
        """The same as tensors, which share this memory."""
        starts, cells, words = self.tokens + 1, 2 * (self.tokens + 1) + self.pairs, self.words
        halves = words[cells:].view(torch.float32)
        gate_P, score_Q, log_gate_Q, gate_Q = halves[: self.pairs + 3 * self.keys].split(
            [self.pairs, self.keys, self.keys, self.keys]
        )
        return Fired(
            cell_P=words[2 * starts : cells],
            start_N1=words[:starts],
            gate_P=gate_P,
            score_Q=score_Q.view(torch.int32),
            key_start_N1=words[starts : 2 * starts],
            log_gate_Q=log_gate_Q,
            gate_Q=gate_Q,
        )


def pack(cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, sizes: tuple[int, int, int]) -> Packed:
    """Pairs alone, of float32 gates, without the scores that pass."""
    pairs = len(cell_P)
    halves = gate_P.new_zeros(pairs + pairs % 2)
    halves[:pairs] = gate_P
    words = torch.cat([start_N1, torch.zeros_like(start_N1), cell_P, halves.view(torch.int64)])
    return Packed(words, tokens=len(start_N1) - 1, pairs=pairs, keys=0, sizes=sizes)
