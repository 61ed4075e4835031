"""expert_sum on a CPU: two passes over table rows, by the C++ library where it was built, else by stock torch ops.

The stock ops are the embedding bags of float tables; rows of the other precisions are made float a chunk at a time.
"""

# T tokens, D model width, E experts, B stored values of a row, P pairs (a token and one of its experts)

import torch
from torch import Tensor

from kernels import backends
from kernels.activations import activation
from kernels.expert_sum import bags, chunks, native
from kernels.pairs import tokens_of_pairs


def forward(
    x_TD: Tensor,
    u_EB: Tensor,
    u_scale_E: Tensor | None,
    bias_E: Tensor,
    v_EB: Tensor,
    v_scale_E: Tensor | None,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor]:
    """(T, D) output in x's dtype, and (P) pre-activations, float32 or float64, which the backward pass reads."""
    pre_P = row_dots(x_TD, u_EB, u_scale_E, expert_P, start_T1)
    pre_P += bias_E[expert_P]
    weight_P = activation(act).f(pre_P) * gate_P
    return row_sums(v_EB, v_scale_E, expert_P, start_T1, weight_P, x_TD.shape[1]).to(x_TD.dtype), pre_P


def backward(
    dy_TD: Tensor,
    u_EB: Tensor,
    u_scale_E: Tensor | None,
    v_EB: Tensor,
    v_scale_E: Tensor | None,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    pre_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T, D) dx in dy's dtype; (P) dgate; and the rows' gradients as coefficients of (expert, token) pairs.

    du_e is the sum over the expert's pairs of du_P * x_token, dv_e that of dv_P * dy_token, db_e that of du_P.
    """
    chosen = activation(act)
    hidden_P = chosen.f(pre_P)
    dy_dot_v_P = row_dots(dy_TD, v_EB, v_scale_E, expert_P, start_T1)
    du_P = gate_P * chosen.derivative(pre_P) * dy_dot_v_P
    dx_TD = row_sums(u_EB, u_scale_E, expert_P, start_T1, du_P, dy_TD.shape[1]).to(dy_TD.dtype)
    return dx_TD, hidden_P * dy_dot_v_P, du_P, gate_P * hidden_P


def row_dots(x_TD: Tensor, table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor) -> Tensor:
    """(P): the dot product of each pair's token and (scaled) table row."""
    library = backends.cpu_library()
    if table_EB.dtype == torch.float64 or (table_EB.dtype == torch.float32 and library is None):
        return bags.row_dots(x_TD.to(table_EB.dtype), table_EB, expert_P, start_T1, tokens_of_pairs(start_T1))
    if library is None:
        return chunks.row_dots(x_TD.float(), table_EB, scale_E, expert_P, start_T1)
    return native.row_dots(library, x_TD.float().contiguous(), table_EB, scale_E, expert_P, start_T1)


def row_sums(
    table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor, weight_P: Tensor, width: int
) -> Tensor:
    """(T, D): for each token the sum of its pairs' (scaled) table rows by their weights."""
    library = backends.cpu_library()
    if table_EB.dtype == torch.float64 or (table_EB.dtype == torch.float32 and library is None):
        return bags.bag_sum(table_EB, expert_P, start_T1, weight_P)
    if library is None:
        return chunks.row_sums(table_EB, scale_E, expert_P, start_T1, weight_P.float(), width)
    return native.row_sums(library, table_EB, scale_E, expert_P, start_T1, weight_P.float().contiguous())
