"""The oracles of product-key selection: every pair's score, then the rule. Never optimised."""

# T tokens, H heads, N sub-keys an axis, K pairs kept, P pairs that fire

import torch
from torch import Tensor


def product_key_topk(row_THN: Tensor, column_THN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) scores and cells (row * N + column) of the k best sums, best first (PEER, arXiv 2407.04153, alg. 1)."""
    score_THC = (row_THN[..., :, None] + column_THN[..., None, :]).flatten(2)
    best = score_THC.topk(k, dim=-1)
    return best.values, best.indices


def product_key_threshold(
    row_THN: Tensor, column_THN: Tensor, threshold_H: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) token, head, row and column of every pair whose two scores sum to more than its head's threshold."""
    score_THRC = row_THN[..., :, None] + column_THN[..., None, :]
    token_P, head_P, row_P, column_P = torch.nonzero(score_THRC > threshold_H[:, None, None], as_tuple=True)
    return token_P, head_P, row_P, column_P
