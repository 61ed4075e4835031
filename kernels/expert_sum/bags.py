"""`expert_sum`'s passes over float tables as stock embedding-bag ops: no gathered [P, D] copy of a table exists.

`aten::_embedding_bag_per_sample_weights_backward(x, U, ...)` is the dot product of every pair's token row with
its table row; `embedding_bag` with per-sample weights is the weighted sum of table rows of a bag. Together they
are the whole layer, at the machine's gather bandwidth (docs/decisions/0004-expert-sum-by-bags.md).
"""

# T tokens, D model width, E experts, B bags, P pairs (a token and one of its experts)

import torch
from torch import Tensor


def row_dots(x_TD: Tensor, table_ED: Tensor, expert_P: Tensor, start_T1: Tensor, token_P: Tensor) -> Tensor:
    """(P): the dot product of each pair's token row and table row."""
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x_TD, table_ED, expert_P, start_T1[:-1], token_P, 0
    )


def bag_sum(table_ED: Tensor, row_P: Tensor, start_B1: Tensor, weight_P: Tensor) -> Tensor:
    """(B, D): for each bag the sum of its pairs' weighted table rows."""
    if row_P.numel() == 0:
        return table_ED.new_zeros(len(start_B1) - 1, table_ED.shape[1])
    return torch.embedding_bag(
        table_ED, row_P, start_B1, False, 0, False, weight_P.to(table_ED.dtype), include_last_offset=True
    )[0]


def table_gradient(source_TD: Tensor, expert_P: Tensor, token_P: Tensor, weight_P: Tensor, table_ED: Tensor) -> Tensor:
    """(E, D) gradient of a float table in its dtype: row e is the sum of its pairs' weighted token rows."""
    sorted_P, order_P = torch.sort(expert_P, stable=True)
    start_E1 = torch.searchsorted(sorted_P, torch.arange(len(table_ED) + 1, device=expert_P.device))
    gradient_ED = bag_sum(source_TD.to(weight_P.dtype), token_P[order_P], start_E1, weight_P[order_P])
    return gradient_ED.to(table_ED.dtype)
