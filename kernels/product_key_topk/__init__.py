"""product_key_topk: which cells of the key grid a token reaches, by the k best sums or by a threshold on the sum."""

# T tokens, H heads, N sub-keys an axis, K pairs kept, C candidates, P pairs that fire

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _hyperbola(k: int) -> tuple[Tensor, Tensor]:
    """Ranks (i, j) that can be among the k best sums: (i + 1)(j + 1) <= k, since as many pairs beat it."""
    ranks = torch.arange(1, k + 1)
    i_C, j_C = torch.nonzero(ranks[:, None] * ranks[None, :] <= k, as_tuple=True)
    return i_C, j_C


def product_key_topk(row_THN: Tensor, column_THN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) scores and cells (row * N + column, N columns) of the k best sums, best first (PEER alg. 1).

    ValueError where k is more than an axis holds. Differentiable in the scores.
    """
    num_columns = column_THN.shape[-1]
    num_keys = min(row_THN.shape[-1], num_columns)
    if not 1 <= k <= num_keys:
        raise ValueError(f"product_key_topk got k={k} for {num_keys} sub-keys an axis; use 1 to {num_keys}")
    rows, columns = row_THN.topk(k, dim=-1), column_THN.topk(k, dim=-1)
    i_C, j_C = (ranks.to(row_THN.device) for ranks in _hyperbola(k))
    score_THC = rows.values[..., i_C] + columns.values[..., j_C]
    best = score_THC.topk(k, dim=-1)
    cell_THC = rows.indices[..., i_C] * num_columns + columns.indices[..., j_C]
    return best.values, cell_THC.gather(-1, best.indices)


def product_key_threshold(
    row_THN: Tensor, column_THN: Tensor, threshold_H: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) token, head, row and column of every pair whose scores sum to more than its head's threshold.

    Exact, with no cap and no floor: a row can only fire with the best column, so the search is over the rows and
    columns that pass with their best partner. Pairs come in order of tokens, then heads.
    """
    with torch.no_grad():
        row_best_TH1, column_best_TH1 = row_THN.amax(-1, keepdim=True), column_THN.amax(-1, keepdim=True)
        limit_H1 = threshold_H[:, None]
        num_rows = int((row_THN + column_best_TH1 > limit_H1).sum(-1).max()) if row_THN.numel() else 0
        num_columns = int((column_THN + row_best_TH1 > limit_H1).sum(-1).max()) if row_THN.numel() else 0
        rows, columns = row_THN.topk(num_rows, dim=-1), column_THN.topk(num_columns, dim=-1)
        fires_THRC = rows.values[..., :, None] + columns.values[..., None, :] > limit_H1[..., None]
        token_P, head_P, i_P, j_P = torch.nonzero(fires_THRC, as_tuple=True)
        return token_P, head_P, rows.indices[token_P, head_P, i_P], columns.indices[token_P, head_P, j_P]
