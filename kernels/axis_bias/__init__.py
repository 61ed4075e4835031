"""axis_bias: what the sub-keys that a token passes add to its output, by their gates of one axis.

For inference alone, as `jump_router` whose scores it takes: it has no gradients, and passes torch's dispatcher by
unless torch compiles.
"""

# N tokens, D model width, I sub-keys of the rows, J of the columns, Q scores that pass

import torch
from torch import Tensor

from kernels import backends
from kernels.axis_bias import native, stock
from kernels.errors import Mistake


def _bias(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, num_heads: int, row_ID: Tensor, column_JD: Tensor
) -> Tensor:
    _check(score_Q, gate_Q, key_start_N1, num_heads, row_ID, column_JD)
    library = backends.cpu_library()
    given = score_Q, gate_Q, key_start_N1, num_heads, row_ID.contiguous(), column_JD.contiguous()
    if library is not None and row_ID.device.type == "cpu" and gate_Q.dtype == row_ID.dtype == torch.float32:
        return native.axis_bias(library, *given)
    return stock.axis_bias(*given)


_axis_bias = torch.library.custom_op("legible::axis_bias", _bias, mutates_args=(), device_types=None)


@_axis_bias.register_fake
def _(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, num_heads: int, row_ID: Tensor, column_JD: Tensor
) -> Tensor:
    return row_ID.new_empty(len(key_start_N1) - 1, row_ID.shape[1])


def axis_bias(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, num_heads: int, row_ID: Tensor, column_JD: Tensor
) -> Tensor:
    """(N, D) sum over the scores that pass (as `jump_router` gives them) of their gate * their sub-key's bias row."""
    bias = _axis_bias if torch.compiler.is_compiling() else _bias
    return bias(score_Q, gate_Q, key_start_N1, num_heads, row_ID, column_JD)


def _check(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, heads: int, row_ID: Tensor, column_JD: Tensor
) -> None:
    """ValueError for shapes and dtypes that do not fit each other."""
    dtypes = score_Q.dtype, key_start_N1.dtype
    if dtypes != (torch.int32, torch.int64) or score_Q.shape != gate_Q.shape or not key_start_N1.shape[0]:
        raise Mistake(
            f"axis_bias got score_Q of shape {tuple(score_Q.shape)}, {dtypes[0]}, gate_Q of {tuple(gate_Q.shape)} and "
            f"key_start_N1 of {tuple(key_start_N1.shape)}, {dtypes[1]}; pass on what the router returned"
        )
    if row_ID.ndim != 2 or column_JD.ndim != 2 or row_ID.shape[1] != column_JD.shape[1] or heads < 1:
        raise Mistake(
            f"axis_bias got biases of shapes {tuple(row_ID.shape)} and {tuple(column_JD.shape)} for {heads} heads; "
            "it takes rows of one width and a head at least"
        )
