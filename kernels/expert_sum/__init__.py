"""expert_sum: sum over a token's experts of gate * act(u . x + b) * v, as a PyTorch operator with its gradients."""

# T tokens, D model width, E experts, P pairs (a token and one of its experts), in order of their tokens

import torch
from torch import Tensor

from kernels.expert_sum import bags
from kernels.expert_sum.reference import tokens_of_pairs


@torch.library.custom_op("legible::expert_sum", mutates_args=())
def _expert_sum(
    x_TD: Tensor,
    u_ED: Tensor,
    bias_E: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor]:
    return bags.forward(x_TD, u_ED, bias_E, v_ED, expert_P, start_T1, gate_P, act)


@_expert_sum.register_fake
def _(
    x_TD: Tensor,
    u_ED: Tensor,
    bias_E: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_TD), torch.empty_like(gate_P)


@torch.library.custom_op("legible::expert_sum_backward", mutates_args=())
def _expert_sum_backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    u_ED: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    pre_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx_TD, dgate_P, du_P, dv_P = bags.backward(dy_TD, u_ED, v_ED, expert_P, start_T1, gate_P, pre_P, act)
    order_P, rows_R, start_R1 = bags.pairs_by_expert(expert_P)
    token_P = tokens_of_pairs(start_T1)
    du_ED, dv_ED = torch.zeros_like(u_ED), torch.zeros_like(v_ED)
    du_ED[rows_R] = bags.row_gradients(x_TD, order_P, token_P, du_P, start_R1)
    dv_ED[rows_R] = bags.row_gradients(dy_TD, order_P, token_P, dv_P, start_R1)
    dbias_E = u_ED.new_zeros(len(u_ED)).index_add(0, expert_P, du_P)
    return dx_TD, du_ED, dbias_E, dv_ED, dgate_P


@_expert_sum_backward.register_fake
def _(
    dy_TD: Tensor,
    x_TD: Tensor,
    u_ED: Tensor,
    v_ED: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    pre_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x_TD),
        torch.empty_like(u_ED),
        u_ED.new_empty(len(u_ED)),
        torch.empty_like(v_ED),
        torch.empty_like(gate_P),
    )


def _save(ctx, inputs, output) -> None:  # noqa: ANN001 - torch's own protocol
    x_TD, u_ED, _, v_ED, expert_P, start_T1, gate_P, ctx.act = inputs
    ctx.save_for_backward(x_TD, u_ED, v_ED, expert_P, start_T1, gate_P, output[1])


def _gradients(ctx, dy_TD: Tensor, _: Tensor):  # noqa: ANN001, ANN202 - torch's own protocol
    x_TD, u_ED, v_ED, expert_P, start_T1, gate_P, pre_P = ctx.saved_tensors
    dx, du, dbias, dv, dgate = _expert_sum_backward(
        dy_TD.contiguous(), x_TD, u_ED, v_ED, expert_P, start_T1, gate_P, pre_P, ctx.act
    )
    return dx, du, dbias, dv, None, None, dgate, None


_expert_sum.register_autograd(_gradients, setup_context=_save)


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
    """(T, D): for every token the sum over its pairs of gate * act(u_e . x + b_e) * v_e (PEER eq. 2).

    Pairs lie in order of their tokens: those of token t are start_T1[t] to start_T1[t + 1] (int64). Differentiable
    in x, u, bias, v and gate. ValueError where indices and starts do not fit the tables.
    """
    if start_T1.shape != (len(x_TD) + 1,) or start_T1.dtype != torch.int64:
        raise ValueError(
            f"expert_sum got start_T1 of shape {tuple(start_T1.shape)}, {start_T1.dtype} for {len(x_TD)} tokens; "
            f"it takes ({len(x_TD) + 1},) of torch.int64"
        )
    if int(start_T1[0]) != 0 or int(start_T1[-1]) != len(expert_P) or bool((start_T1.diff() < 0).any()):
        raise ValueError(
            f"expert_sum got start_T1 from {int(start_T1[0])} to {int(start_T1[-1])} for {len(expert_P)} pairs; "
            f"it takes starts that ascend from 0 to {len(expert_P)}"
        )
    if gate_P.shape != expert_P.shape:
        raise ValueError(f"expert_sum got {len(gate_P)} gates for {len(expert_P)} pairs; it takes one a pair")
    if expert_P.numel() and not 0 <= int(expert_P.min()) <= int(expert_P.max()) < len(u_ED):
        raise ValueError(f"expert_sum got an expert index outside the table of {len(u_ED)} rows")
    return _expert_sum(x_TD, u_ED, bias_E, v_ED, expert_P, start_T1, gate_P, act)[0]
