"""Product-key selection out of stock PyTorch ops: no tensor over all pairs of sub-keys exists."""

# T tokens, H heads, N row and M column sub-keys, K pairs kept, C candidates, P pairs that fire, B bags: every token's
# every head, R rows and Q columns of all bags that pass: those that fire with their best partner

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 4
"""Sub-keys a block of `_best`. 4 and 8 are alike, 2 and 16 slower (N = 128 to 1024, k = 8 to 32)."""

FEW = 2**18
"""Up to so many sums `threshold` compares the rows that pass with every column, above it with those that pass alone."""

PIECE = 2**20
"""Sums of passing rows and columns at a time: some 50 MB of indices and scores."""


@lru_cache(maxsize=64)
def hyperbola(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ranks (i, j) that can be among the k best sums: (i + 1)(j + 1) <= k, since as many pairs beat it."""
    ranks = torch.arange(1, k + 1)
    i_C, j_C = torch.nonzero(ranks[:, None] * ranks[None, :] <= k, as_tuple=True)
    return i_C.to(device), j_C.to(device)


def _best(score_THN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) the k best sub-keys, best first, and which they are.

    They lie in the k blocks of the best maxima. `torch.topk` pays some 15 ns an element, so two short calls beat a
    long one; but from N = 64 k it selects by a heap and is fast by itself (ATen's TopKImpl.h).
    """
    num_keys = score_THN.shape[-1]
    if num_keys % BLOCK or not 4 * BLOCK * k <= num_keys < 64 * k:
        return torch.topk(score_THN, k, dim=-1)
    num_blocks = num_keys // BLOCK
    # Block b holds the sub-keys b, b + num_blocks, ...: then the maxima are those of contiguous vectors.
    maxima = score_THN.unflatten(-1, (BLOCK, num_blocks)).amax(-2)
    block_THK = maxima.topk(k, dim=-1, sorted=False).indices
    firsts = torch.arange(0, num_keys, num_blocks, device=score_THN.device)
    key_THC = (block_THK[..., None, :] + firsts[:, None]).flatten(-2)
    best = score_THN.gather(-1, key_THC).topk(k, dim=-1)
    return best.values, key_THC.gather(-1, best.indices)


def topk(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) scores and int64 cells, row * M + column, of the k best sums, best first. Expects 1 <= k <= N, M."""
    (row_THK, row_index_THK), (column_THK, column_index_THK) = _best(row_THN, k), _best(column_THM, k)
    i_C, j_C = hyperbola(k, row_THN.device)
    best = (row_THK[..., i_C] + column_THK[..., j_C]).topk(k, dim=-1)
    row_key_THK = row_index_THK.gather(-1, i_C[best.indices])
    column_key_THK = column_index_THK.gather(-1, j_C[best.indices])
    return best.values, row_key_THK * column_THM.shape[-1] + column_key_THK


def topk_backward(dscore_THK: Tensor, cell_THK: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """(T, H, N) and (T, H, M) gradients of the scores of the rows and columns, given that of the sums."""
    drow_THN = dscore_THK.new_zeros(*dscore_THK.shape[:2], num_rows)
    dcolumn_THM = dscore_THK.new_zeros(*dscore_THK.shape[:2], num_columns)
    row_THK = cell_THK // num_columns
    drow_THN.scatter_add_(-1, row_THK, dscore_THK)
    dcolumn_THM.scatter_add_(-1, cell_THK - row_THK * num_columns, dscore_THK)
    return drow_THN, dcolumn_THM


def threshold(row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) int64 token, head, row and column of every pair whose scores sum to more than its head's threshold.

    In lexicographic order. A row can fire only if it fires with its best column, and a column with its best row
    (rounding keeps order, so this holds for rounded sums too).
    """
    num_heads, num_columns = row_THN.shape[1], column_THM.shape[-1]
    row_passes_THN = row_THN + column_THM.amax(-1, keepdim=True) > threshold_H[:, None]
    bag_R, row_R = row_passes_THN.flatten(0, 1).nonzero().unbind(1)
    score_R, limit_R = row_THN.flatten(0, 1)[bag_R, row_R], threshold_H[bag_R % num_heads]
    if len(bag_R) * num_columns <= FEW:
        fires_RM = score_R[:, None] + column_THM.flatten(0, 1)[bag_R] > limit_R[:, None]
        pair_P, column_P = fires_RM.nonzero().unbind(1)
    else:
        column_passes_THM = column_THM + row_THN.amax(-1, keepdim=True) > threshold_H[:, None]
        pair_P, column_P = _with_columns_that_pass(score_R, limit_R, bag_R, column_THM, column_passes_THM)
    bag_P = bag_R[pair_P]
    # An operator's output may not lie among other numbers, as the columns that nonzero gives do.
    return bag_P // num_heads, bag_P % num_heads, row_R[pair_P], column_P.clone()


def _with_columns_that_pass(
    score_R: Tensor, limit_R: Tensor, bag_R: Tensor, column_THM: Tensor, passes_THM: Tensor
) -> tuple[Tensor, Tensor]:
    """(P) which row that passes, and which column, of the pairs that fire."""
    column_BM = column_THM.flatten(0, 1)
    bag_Q, column_Q = passes_THM.flatten(0, 1).nonzero().unbind(1)
    score_Q = column_BM[bag_Q, column_Q]
    count_B = torch.bincount(bag_Q, minlength=len(column_BM))
    first_R, count_R = (count_B.cumsum(0) - count_B)[bag_R], count_B[bag_R]
    step = max(PIECE // int(count_B.max()), 1)
    rows, columns = [], []
    for start in range(0, len(bag_R), step):
        part = slice(start, start + step)
        row_C = torch.repeat_interleave(count_R[part])
        # A row's candidates are numbered from the first column that passes in its bag.
        offset_R = first_R[part] - count_R[part].cumsum(0) + count_R[part]
        candidate_C = torch.arange(len(row_C), device=row_C.device) + offset_R[row_C]
        fires_C = score_R[part][row_C] + score_Q[candidate_C] > limit_R[part][row_C]
        fired_P = fires_C.nonzero().squeeze(1)
        rows.append(row_C[fired_P] + start)
        columns.append(candidate_C[fired_P])
    return torch.cat(rows), column_Q[torch.cat(columns)]
