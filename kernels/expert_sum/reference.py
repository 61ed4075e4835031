"""The oracle of `expert_sum`: gather every row, straight from PEER eq. 2 (arXiv 2407.04153). Never optimised."""

# T tokens, D model width, E experts, P pairs (a token and one of its experts), in order of their tokens

import torch
from torch import Tensor

from kernels.activations import activation


def expert_sum(
    x_TD: Tensor,
    u_ED: Tensor,
    bias_E: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> Tensor:
    """(T, D): the sum over each token's pairs of gate * act(u_e . x + b_e) * v_e. Differentiable by autograd."""
    token_P = torch.repeat_interleave(torch.arange(len(start_T1) - 1, device=start_T1.device), start_T1.diff())
    pre_P = (x_TD[token_P] * u_ED[expert_P]).sum(-1) + bias_E[expert_P]
    coefficient_P = gate_P * activation(act).f(pre_P)
    y_TD = torch.zeros_like(x_TD)
    return y_TD.index_add(0, token_P, coefficient_P[:, None] * v_ED[expert_P])
