"""Product-key selection by the C++ library (native.cpp)."""

# T tokens, H heads, N and M sub-keys of the axes, K pairs kept, G a (token, head), P pairs that fire

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer


def topk(library: CpuLibrary, row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) float32 scores and cells (row * M + column) of the k best sums, best first. Scores are float32."""
    if not row_THN.is_contiguous() and _lies_by_heads(row_THN, column_THM):
        # As a batched product of queries and keys leaves them: at a thousand sub-keys a copy costs as much as the rest.
        score_HTK, cell_HTK = topk(library, row_THN.transpose(0, 1), column_THM.transpose(0, 1), k)
        return score_HTK.transpose(0, 1).contiguous(), cell_HTK.transpose(0, 1).contiguous()
    row_THN, column_THM = row_THN.contiguous(), column_THM.contiguous()
    tokens, heads, _ = row_THN.shape
    score_THK, cell_THK = torch.empty(tokens, heads, k), torch.empty(tokens, heads, k, dtype=torch.int64)
    library.functions.product_key_topk(
        pointer(row_THN), pointer(column_THM), ctypes.c_int64(tokens * heads), ctypes.c_int32(row_THN.shape[-1]),
        ctypes.c_int32(column_THM.shape[-1]), ctypes.c_int32(k), library.code,
        ctypes.c_int32(torch.get_num_threads()), pointer(score_THK), pointer(cell_THK),
    )  # fmt: skip
    return score_THK, cell_THK


def _lies_by_heads(*score_THX: Tensor) -> bool:
    return all(score.transpose(0, 1).is_contiguous() for score in score_THX)


def threshold(
    library: CpuLibrary, row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) token, head, row and column of every sum above its head's threshold, in that order. Scores are float32."""
    tokens, heads, _ = row_THN.shape
    groups, threads = tokens * heads, ctypes.c_int32(torch.get_num_threads())
    scores = pointer(row_THN), pointer(column_THM), pointer(threshold_H)
    sizes = (
        ctypes.c_int64(groups), ctypes.c_int64(heads), ctypes.c_int32(row_THN.shape[-1]),
        ctypes.c_int32(column_THM.shape[-1]), threads,
    )  # fmt: skip
    count_G = torch.empty(groups, dtype=torch.int64)
    library.functions.product_key_count(*scores, *sizes, pointer(count_G))
    start_G1 = torch.cat([count_G.new_zeros(1), count_G.cumsum(0)])
    found = [torch.empty(int(start_G1[-1]), dtype=torch.int64) for _ in range(4)]
    library.functions.product_key_fill(*scores, pointer(start_G1), *sizes, *map(pointer, found))
    token_P, head_P, row_P, column_P = found
    return token_P, head_P, row_P, column_P
