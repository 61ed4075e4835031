"""sr_update: one training step of an int4 table whose gradients are accumulated by a second int4 table.

State a row of d values: nibbles w (read by the forward pass), nibbles a (the accumulator), the scale of one int4
step, the running mean square of its gradients. 1 byte a parameter and 6 bytes a row; no float copy, and no gradient
of the table: the touched rows' are summed out of weighted tokens, used and forgotten.
"""

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from kernels import backends
from kernels.backends import cuda_kernels
from kernels.errors import Mistake
from kernels.expert_sum.bags import bag_sum
from kernels.sr_update import native, stock


@dataclass(frozen=True, slots=True)
class NibbleTable:
    """The trainable int4 table. Tensors are updated in place."""

    weight_EB: Tensor
    """uint8, two nibbles w in [-7, 7] a byte (kernels/packing.py)."""
    accumulator_EB: Tensor
    """uint8, two nibbles a in [-8, 7] a byte."""
    scale_E: Tensor
    """float16, the weight that one step of w stands for."""
    moment_E: Tensor
    """float32, running mean square of the row's gradients; 0 for a row never touched."""


@dataclass(frozen=True, slots=True)
class RowGradients:
    """A table's gradient as weighted token rows: that of row r is the sum over its pairs of weight * source."""

    source_TD: Tensor
    row_R: Tensor
    """The touched rows, ascending, int64."""
    start_R1: Tensor
    """Where each touched row's pairs start, int64."""
    token_P: Tensor
    weight_P: Tensor


@dataclass(frozen=True, slots=True)
class UpdateCounts:
    rows: int
    flips: int
    """Values of w that changed."""
    growths: int
    """Rows whose scale grew because too many values met the end of the range."""
    refused: int
    """Rows left as they were: their gradient overflows float32, or their scale would leave float16."""


def row_gradients(gradients: RowGradients) -> Tensor:
    """(R, D) float32: the gradients of the touched rows, summed out of their pairs."""
    source_TD, weight_P = gradients.source_TD.float(), gradients.weight_P.float()
    return bag_sum(source_TD, gradients.token_P, gradients.start_R1, weight_P)


def sr_update(
    table: NibbleTable, gradients: RowGradients, *, learning_rate: float, key: tuple[int, int]
) -> UpdateCounts:
    """Moves the touched rows one step against their gradients, rounding stochastically.

    `learning_rate` is in units of the weights for a gradient of unit row norm (root mean square). `key` is the stream
    and the step of kernels/philox.py: the same key, table and gradients give the same bits. Rows whose gradient
    overflows float32, or whose scale would leave float16, stay as they were and are counted. ValueError for a gradient
    that is not finite, before any row has changed.
    """
    stream, step = key
    _check(table, gradients, stream, step)
    counts = _sr_update(
        table.weight_EB, table.accumulator_EB, table.scale_E, table.moment_E,
        gradients.source_TD.float().contiguous(), gradients.row_R, gradients.start_R1, gradients.token_P,
        gradients.weight_P.float().contiguous(), learning_rate, stream, step,
    )  # fmt: skip
    flips, growths, refused = (int(count) for count in counts)
    return UpdateCounts(rows=len(gradients.row_R), flips=flips, growths=growths, refused=refused)


@torch.library.custom_op(
    "legible::sr_update",
    mutates_args=("weight_EB", "accumulator_EB", "scale_E", "moment_E"),
    device_types="cpu",
)
def _sr_update(
    weight_EB: Tensor,
    accumulator_EB: Tensor,
    scale_E: Tensor,
    moment_E: Tensor,
    source_TD: Tensor,
    row_R: Tensor,
    start_R1: Tensor,
    token_P: Tensor,
    weight_P: Tensor,
    learning_rate: float,
    stream: int,
    step: int,
) -> Tensor:
    state = weight_EB, accumulator_EB, scale_E, moment_E
    pairs = source_TD, row_R, start_R1, token_P, weight_P
    library = backends.cpu_library()
    if library is None:
        return stock.sr_update(*state, *pairs, learning_rate, stream, step)
    return native.sr_update(library, *state, *pairs, learning_rate, stream, step)


@_sr_update.register_kernel("cuda")
def _(*arguments: Any) -> Tensor:
    *tensors, learning_rate, stream, step = arguments
    kernels = cuda_kernels("sr_update")
    return torch.tensor(kernels.update_rows(*tensors, learning_rate=learning_rate, stream=stream, step=step))


@_sr_update.register_fake
def _(*arguments: Any) -> Tensor:
    return torch.empty(3, dtype=torch.int64)


def _check(table: NibbleTable, gradients: RowGradients, stream: int, step: int) -> None:
    """ValueError for the first argument that does not fit."""
    num_rows, width = len(table.weight_EB), gradients.source_TD.shape[1]
    if width % 2:
        _refuse("source_TD", f"an odd width of {width}", "an even one: a byte of the table holds two values")
    wanted = {
        "weight_EB": (torch.uint8, (num_rows, width // 2)),
        "accumulator_EB": (torch.uint8, (num_rows, width // 2)),
        "scale_E": (torch.float16, (num_rows,)),
        "moment_E": (torch.float32, (num_rows,)),
    }
    for name, (dtype, shape) in wanted.items():
        tensor = getattr(table, name)
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            _refuse(name, f"{tuple(tensor.shape)} of {tensor.dtype}", f"contiguous {shape} of {dtype}")
    pairs, rows = len(gradients.token_P), len(gradients.row_R)
    for name, length in (("row_R", rows), ("start_R1", rows + 1), ("token_P", pairs)):
        tensor = getattr(gradients, name)
        if tensor.dtype != torch.int64 or tensor.shape != (length,):
            _refuse(name, f"{tuple(tensor.shape)} of {tensor.dtype}", f"({length},) of torch.int64")
    if gradients.weight_P.shape != (pairs,):
        _refuse("weight_P", f"{tuple(gradients.weight_P.shape)}", f"({pairs},), one a pair")
    _check_values(gradients, num_rows)
    if not 0 <= stream < 2**63 or not 0 <= step < 2**32:
        _refuse("key", f"stream {stream}, step {step}", "a stream in [0, 2**63) and a step in [0, 2**32)")


def _check_values(gradients: RowGradients, num_rows: int) -> None:
    start_R1, row_R, token_P = gradients.start_R1, gradients.row_R, gradients.token_P
    pairs, tokens = len(token_P), len(gradients.source_TD)
    unfinished = "a gradient that is not finite", "finite ones; lower the learning rate or skip the batch"
    wrong = [
        (start_R1[0] != 0) | (start_R1[-1] != pairs) | (start_R1.diff() < 0).any(),
        _outside(row_R, num_rows),
        (row_R.diff() <= 0).any(),
        _outside(token_P, tokens),
        ~torch.isfinite(gradients.source_TD).all(),
        ~torch.isfinite(gradients.weight_P).all(),
    ]
    # One answer to wait for on a GPU; what is wrong is looked up only then.
    starts, rows, order, tokens_outside, sources, weights = torch.stack(wrong).tolist()
    if starts:
        got = f"starts from {int(start_R1[0])} to {int(start_R1[-1])}"
        _refuse("start_R1", got, f"starts that ascend from 0 to {pairs}")
    if rows:
        _refuse("row_R", _range(row_R), f"0 to {num_rows - 1}")
    if order:
        _refuse("row_R", "rows that do not ascend", "each touched row once, in order (`pairs_by_row` makes it so)")
    if tokens_outside:
        _refuse("token_P", _range(token_P), f"0 to {tokens - 1}")
    if sources:
        _refuse("source_TD", *unfinished)
    if weights:
        _refuse("weight_P", *unfinished)


def _range(index_X: Tensor) -> str:
    return f"indices from {int(index_X.min())} to {int(index_X.max())}"


def _outside(index_X: Tensor, limit: int) -> Tensor:
    """Whether any index is no row of a table of so many; a tensor, so that a GPU need not be waited for."""
    if not len(index_X):
        return torch.zeros((), dtype=torch.bool, device=index_X.device)
    lowest, highest = torch.aminmax(index_X)
    return (lowest < 0) | (highest >= limit)


def _refuse(argument: str, got: str, wanted: str) -> NoReturn:
    raise Mistake(f"sr_update got {argument} with {got}; it takes {wanted}")
