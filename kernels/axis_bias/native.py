"""`axis_bias` by the C++ library (native.cpp), and its biases as other layers in C++ take them."""

# N tokens, D model width, I sub-keys of the rows, J of the columns, Q scores that pass

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer
from kernels.errors import Mistake

_WRONG = ("a score that points outside", "key_start_N1 that does not ascend within score_Q")
"""As native.cpp numbers what is wrong, from 1."""


class AxisBiases(ctypes.Structure):
    """As kernels/native.h lays it out."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("row", "column")),
        *((name, ctypes.c_int64) for name in ("heads", "rows", "columns", "width", "stride")),
    )


LINE = 16
"""Floats of a cache line."""

MOST_COPIED = 2**18
"""Floats of axis biases that are copied: at each call whoever keeps a copy compares it with what it was made from."""


def axis_biases(
    biases: tuple[Tensor, Tensor] | None, sizes: tuple[int, int, int], width: int
) -> tuple[AxisBiases, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Of (I, D) and (J, D) rows for the sub-keys of a router of these `sizes`, or of none; the tensors that it points
    to; and those of the biases that were copied for it.

    Rows of few sub-keys are copied to lie an odd number of cache lines apart, so that the same columns of many rows
    find room in the nearest cache. ValueError for rows that do not fit.
    """
    heads, *shape = sizes
    few = sum(shape) * width <= MOST_COPIED
    stride = LINE * (-(-width // LINE) | 1) if few else width
    read = []
    for name, keys, bias_XD in zip(("row_ID", "column_JD"), shape, biases or (), strict=False):
        if bias_XD.dtype != torch.float32 or bias_XD.shape != (keys, width):
            raise Mistake(
                f"axis biases got {name} of shape {tuple(bias_XD.shape)}, {bias_XD.dtype}; it takes ({keys}, {width}) "
                "of torch.float32, a row for each sub-key"
            )
        bias_XD = bias_XD.detach()
        read.append(torch.nn.functional.pad(bias_XD, (0, stride - width)) if few else bias_XD.contiguous())
    given = AxisBiases(*(map(pointer, read) if read else (None, None)), heads, *shape, width, stride)
    return given, (*read,), tuple(b for b, r in zip(biases or (), read, strict=True) if r.data_ptr() != b.data_ptr())


def axis_bias(
    library: CpuLibrary,
    score_Q: Tensor,
    gate_Q: Tensor,
    key_start_N1: Tensor,
    heads: int,
    row_ID: Tensor,
    column_JD: Tensor,
) -> Tensor:
    """(N, D)"""
    tokens, (rows, width) = key_start_N1.shape[0] - 1, row_ID.shape
    y_ND = torch.empty(tokens, width)
    wrong = library.functions.axis_bias_sum(
        pointer(score_Q), pointer(gate_Q), pointer(key_start_N1), pointer(row_ID), pointer(column_JD),
        *map(ctypes.c_int64, (tokens, score_Q.shape[0], heads, rows, column_JD.shape[0], width)), library.code,
        ctypes.c_int32(torch.get_num_threads()), pointer(y_ND),
    )  # fmt: skip
    if wrong:
        raise Mistake(f"axis_bias got {_WRONG[wrong - 1]}; pass on what the router returned")
    return y_ND
