"""`expert_sum` out of stock embedding-bag ops: no gathered [P, D] copy of a table exists, forward or backward.

`aten::_embedding_bag_per_sample_weights_backward(x, U, ...)` is the dot product of every pair's token row with
its table row; `embedding_bag` with per-sample weights is the weighted sum of table rows of a bag. Together they
are the whole layer, at the machine's gather bandwidth (docs/decisions/0004-expert-sum-by-bags.md).
"""

# T tokens, D model width, E experts, P pairs (a token and one of its experts), R rows of a table that are touched

import torch
from torch import Tensor

from kernels.activations import activation
from kernels.expert_sum.reference import tokens_of_pairs


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


def forward(
    x_TD: Tensor,
    u_ED: Tensor,
    bias_E: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor]:
    """(T, D) output and (P) pre-activations, which the backward pass reads."""
    token_P = tokens_of_pairs(start_T1)
    pre_P = row_dots(x_TD, u_ED, expert_P, start_T1, token_P) + bias_E[expert_P]
    return bag_sum(v_ED, expert_P, start_T1, gate_P * activation(act).f(pre_P)), pre_P


def backward(
    dy_TD: Tensor,
    u_ED: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    pre_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T, D) dx; (P) dgate; and the rows' gradients as coefficients of (expert, token) pairs.

    du_e is the sum over the expert's pairs of du_P * x_token, dv_e that of dv_P * dy_token, db_e that of du_P:
    a table's gradient need never exist (`row_gradients` makes the rows that are wanted).
    """
    chosen = activation(act)
    hidden_P = chosen.f(pre_P)
    dy_dot_v_P = row_dots(dy_TD, v_ED, expert_P, start_T1, tokens_of_pairs(start_T1))
    du_P = gate_P * chosen.derivative(pre_P) * dy_dot_v_P
    dx_TD = bag_sum(u_ED, expert_P, start_T1, du_P)
    return dx_TD, hidden_P * dy_dot_v_P, du_P, gate_P * hidden_P


def row_gradients(source_TD: Tensor, order_P: Tensor, token_P: Tensor, weight_P: Tensor, start_R1: Tensor) -> Tensor:
    """(R, D): gradient rows as weighted sums of token rows; `order_P` sorts the pairs by table row."""
    return bag_sum(source_TD, token_P[order_P], start_R1, weight_P[order_P])


def pairs_by_expert(expert_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P) order of the pairs by expert, (R) the experts that occur, (R + 1) where each one's pairs start."""
    sorted_P, order_P = torch.sort(expert_P, stable=True)
    rows_R, counts_R = torch.unique_consecutive(sorted_P, return_counts=True)
    start_R1 = torch.zeros(len(rows_R) + 1, dtype=torch.int64, device=expert_P.device)
    torch.cumsum(counts_R, 0, out=start_R1[1:])
    return order_P, rows_R, start_R1
