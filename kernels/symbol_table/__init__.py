"""symbol_table: sum over the symbolic experts that fire on a token of gate * (scale * f(z) + offset) * v.

For inference alone: it has no gradients. Tables are numbers; nothing in them is evaluated or compiled as text.
"""

# N tokens, D model width, P pairs of a token and a cell, in order of their tokens, O places looked back

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import backends
from kernels.symbol_table import native, stock
from kernels.symbol_table.checks import check_pairs, check_shapes
from kernels.symbol_table.tables import SymbolTables


def _run(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> Tensor:
    x_ND = x_ND.contiguous()
    check_shapes(x_ND, cell_P, start_N1, gate_P, context_ON, tables)
    library = backends.cpu_library()
    if library is not None:
        return native.forward(library, x_ND, cell_P, start_N1, gate_P, context_ON, tables)
    check_pairs(cell_P, start_N1, gate_P, context_ON, tables)
    return stock.forward(x_ND, cell_P, start_N1, gate_P, context_ON, tables)


@torch.library.custom_op("legible::symbol_table", mutates_args=(), device_types=None)
def _symbol_table(
    x_ND: Tensor,
    cell_P: Tensor,
    start_N1: Tensor,
    gate_P: Tensor,
    context_ON: Tensor,
    tables: Sequence[Tensor],
) -> Tensor:
    return _run(x_ND, cell_P, start_N1, gate_P, context_ON, SymbolTables(*tables))


@_symbol_table.register_fake
def _(x_ND: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x_ND)


def symbol_table(
    x_ND: Tensor, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, context_ON: Tensor, tables: SymbolTables
) -> Tensor:
    """(N, D) float32: what the experts of `tables` add for each token.

    Pairs lie in order of their tokens: those of token n are start_N1[n] to start_N1[n + 1] (int64). `context_ON[o]`
    is the token o places back, -1 before the beginning. `check_tables` says once whether tables are sound; here shapes
    are checked, and each index that C++ uses. ValueError names the argument and the entry that does not fit.
    """
    # A backward pass is an error, which the dispatcher raises; without gradients it only takes longer than a token.
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _symbol_table(x_ND, cell_P, start_N1, gate_P, context_ON, list(tables))
    return _run(x_ND, cell_P, start_N1, gate_P, context_ON, tables)
