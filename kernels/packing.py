"""Two int4 values a byte, the one drawing of the layout.

A row of d values (d even) becomes d/2 bytes. Byte j holds elements j and j + d/2, each as two's complement:

    bit      7 6 5 4      3 2 1 0
           [ j + d/2 ]  [    j    ]

so that a half-row unpacks into contiguous elements with one shift and no shuffle.

A table that trains has two such planes, weights w and accumulators a (docs/methods/int4.md); its latent values are
q = 16 w + a.
"""

# E rows, D values of a row, B = D / 2 bytes of a packed row

from typing import Final

import torch
from torch import Tensor

from kernels.errors import Mistake

LAYOUT: Final = "half-split"
"""The name of this drawing, which specs and checkpoints of int4 tables name: bytes drawn otherwise are not read."""


def pack_int4(values_ED: Tensor) -> Tensor:
    """(E, d) int8 in [-8, 7] to (E, d/2) uint8. ValueError for an odd width or another dtype."""
    if values_ED.dtype != torch.int8:
        raise Mistake(f"pack_int4 got values of {values_ED.dtype}; it takes torch.int8 in [-8, 7]")
    width = values_ED.shape[-1]
    if width % 2:
        raise Mistake(f"pack_int4 got rows of odd width {width}; int4 rows hold an even number of values")
    nibbles = values_ED.view(torch.uint8) & 0x0F
    low, high = nibbles[..., : width // 2], nibbles[..., width // 2 :]
    return low | (high << 4)


def unpack_int4(packed_EB: Tensor) -> Tensor:
    """(E, d/2) uint8 to (E, d) int8 in [-8, 7]: the inverse of `pack_int4`."""
    if packed_EB.dtype != torch.uint8:
        raise Mistake(f"unpack_int4 got bytes of {packed_EB.dtype}; it takes torch.uint8")
    signed = packed_EB.view(torch.int8)
    # An arithmetic shift extends the sign of the upper nibble; shifted up first, the lower one's too.
    return torch.cat([(signed << 4) >> 4, signed >> 4], dim=-1)


def latent(weight_EB: Tensor, accumulator_EB: Tensor) -> Tensor:
    """(E, D) int8: q = 16 w + a, which is also the exact int8 view of the table, with scale / 16."""
    return unpack_int4(weight_EB) * 16 + unpack_int4(accumulator_EB)


def split_latent(q_ED: Tensor) -> tuple[Tensor, Tensor]:
    """(E, B) packed w and a of latent values in [-120, 119]: w is q / 16 rounded to nearest."""
    wide_ED = q_ED.to(torch.int16)
    w_ED = (wide_ED + 8) >> 4
    return pack_int4(w_ED.to(torch.int8)), pack_int4((wide_ED - 16 * w_ED).to(torch.int8))
