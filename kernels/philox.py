"""Philox4x32-10 (Salmon et al., SC 2011): random bits as a function of a counter and a key, equal on every device.

Column d of a table's row r, at a step of a stream, draws word d % 4 of the block whose counter is (d // 4, r, step, 0)
and whose key is the stream. Nothing is stored between draws, and rows may be drawn in any order, by any number of
threads. The C++ and Triton kernels draw the same bits.
"""

# R rows, G blocks of a row

import numpy as np
import torch
from torch import Tensor

ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox(counter: tuple[np.ndarray, ...], key: int) -> tuple[np.ndarray, ...]:
    """Four arrays of random 32-bit words for four of counter words and a 64-bit key; all uint64, below 2**32."""
    c0, c1, c2, c3 = (word.copy() for word in counter)
    product0, product1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key & _WORD, key >> 32
    for _ in range(ROUNDS):
        np.multiply(c0, _MULTIPLIERS[0], out=product0)
        np.multiply(c2, _MULTIPLIERS[1], out=product1)
        np.right_shift(product1, np.uint64(32), out=c0)
        c0 ^= c1
        c0 ^= np.uint64(k0)
        np.right_shift(product0, np.uint64(32), out=c2)
        c2 ^= c3
        c2 ^= np.uint64(k1)
        np.bitwise_and(product1, np.uint64(_WORD), out=c1)
        np.bitwise_and(product0, np.uint64(_WORD), out=c3)
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def row_uniforms(row_R: Tensor, width: int, *, stream: int, step: int) -> Tensor:
    """(R, width) float32 in [0, 1), multiples of 2**-24: the draws of these rows of a table at this step."""
    blocks = -(-width // 4)
    block_RG = np.tile(np.arange(blocks, dtype=np.uint64), (len(row_R), 1))
    row_RG = np.repeat(row_R.numpy().astype(np.uint64)[:, None], blocks, axis=1)
    words = philox((block_RG, row_RG, np.full_like(block_RG, step), np.zeros_like(block_RG)), stream)
    uniform_RG4 = np.stack([word >> np.uint64(8) for word in words], axis=-1).astype(np.float32)
    return torch.from_numpy(uniform_RG4).mul_(2.0**-24).flatten(1)[:, :width]
