"""Dot products with table rows, and weighted sums of them, by the C++ library (native.cpp)."""

# T tokens, D model width, E experts, B stored values of a row, P pairs (a token and one of its experts)

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer

PRECISIONS = (torch.float32, torch.bfloat16, torch.int8, torch.uint8)
"""As native.cpp numbers them; uint8 holds packed int4."""


def row_dots(
    library: CpuLibrary, x_TD: Tensor, table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor
) -> Tensor:
    """(P) float32: the dot product of each pair's token and (scaled) table row. x is float32.

    Tokens are rounded to 15 bits of their largest element where AVX-512 multiplies int8 and int4 tables.
    """
    out_P = torch.empty(expert_P.shape[0])
    library.functions.row_dots(
        pointer(x_TD), pointer(table_EB), pointer(scale_E), pointer(expert_P), pointer(start_T1),
        ctypes.c_int64(x_TD.shape[0]), ctypes.c_int64(x_TD.shape[1]), ctypes.c_int32(PRECISIONS.index(table_EB.dtype)),
        library.code, ctypes.c_int32(torch.get_num_threads()), pointer(out_P),
    )  # fmt: skip
    return out_P


def row_sums(
    library: CpuLibrary, table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor, weight_P: Tensor
) -> Tensor:
    """(T, D) float32: for each token the sum of its pairs' (scaled) table rows by their weights, which are float32."""
    width = table_EB.shape[1] * (2 if table_EB.dtype == torch.uint8 else 1)
    out_TD = torch.empty(start_T1.shape[0] - 1, width)
    library.functions.row_sums(
        pointer(table_EB), pointer(scale_E), pointer(expert_P), pointer(start_T1), pointer(weight_P),
        ctypes.c_int64(out_TD.shape[0]), ctypes.c_int64(width), ctypes.c_int32(PRECISIONS.index(table_EB.dtype)),
        library.code, ctypes.c_int32(torch.get_num_threads()), pointer(out_TD),
    )  # fmt: skip
    return out_TD


def pairs_are_sound(library: CpuLibrary, expert_P: Tensor, start_T1: Tensor, gate_P: Tensor, num_experts: int) -> bool:
    """Whether starts ascend from 0 to P, experts are in range and gates, float32, are finite."""
    return bool(
        library.functions.pairs_are_sound(
            pointer(expert_P), pointer(start_T1), pointer(gate_P), ctypes.c_int64(start_T1.shape[0] - 1),
            ctypes.c_int64(expert_P.shape[0]), ctypes.c_int64(num_experts),
        )
    )  # fmt: skip
