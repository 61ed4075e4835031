"""symbol_table: sum over the symbolic experts that fire on a token of gate * (scale * f(z) + offset) * v.

For inference alone: it has no gradients. Tables are numbers; nothing in them is evaluated or compiled as text.
"""

# N tokens, D model width, P pairs of a token and a cell, in order of their tokens, B windows, T tokens of a window

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import backends
from kernels.jump_router.packed import pack
from kernels.symbol_table import stock
from kernels.symbol_table.checks import check_pairs, check_shapes
from kernels.symbol_table.native import SymbolLayer
from kernels.symbol_table.tables import SymbolTables, context_of

__all__ = ["SymbolLayer", "symbol_table"]


@torch.library.custom_op("legible::symbol_table", mutates_args=(), device_types=None)
def _symbol_table(
    x_ND: Tensor,
    cell_P: Tensor,
    start_N1: Tensor,
    gate_P: Tensor,
    tokens_BT: Tensor,
    places: int,
    tables: Sequence[Tensor],
) -> Tensor:
    x_ND, made = x_ND.contiguous(), SymbolTables(*tables)
    check_shapes(x_ND, cell_P, start_N1, gate_P, tokens_BT, made)
    check_pairs(cell_P, start_N1, gate_P, tokens_BT, made)
    library = backends.cpu_library()
    if library is None:
        return stock.forward(x_ND, cell_P, start_N1, gate_P, context_of(tokens_BT, places), made)
    sizes = 0, made.cell_start_C1.shape[0] - 1, 1
    layer = SymbolLayer(library, made, places, None, sizes)
    return layer(x_ND, pack(cell_P, start_N1, gate_P, sizes), tokens_BT)


@_symbol_table.register_fake
def _(x_ND: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x_ND)


def symbol_table(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, tokens_BT: Tensor, tables: SymbolTables, places: int
) -> Tensor:
    """(N, D) float32: what the experts of `tables` add for each token. A backward pass is an error.

    Pairs lie in order of their tokens: those of token n are start_N1[n] to start_N1[n + 1] (int64). Literals look
    `places` tokens back within their window. ValueError names the argument and the entry that does not fit. With the
    C++ library the tables are checked and made into records at each call; `SymbolLayer` does that once.
    """
    return _symbol_table(x_ND, cell_P, start_N1, gate_P, tokens_BT, places, list(tables))
