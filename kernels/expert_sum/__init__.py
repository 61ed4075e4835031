"""expert_sum: sum over a token's experts of gate * act(u . x + b) * v, as a PyTorch operator with its gradients.

Tables u and v are float32, float64, bfloat16, int8 or int4 (uint8, two a byte); the latter two have a scale a row.
"""

# T tokens, D model width, E experts, B stored values of a row, P pairs (a token and one of its experts), in order of
# their tokens

from typing import Any

import torch
from torch import Tensor

from kernels.backends import cuda_kernels
from kernels.expert_sum import bags, cpu
from kernels.expert_sum.checks import check
from kernels.pairs import tokens_of_pairs


def _on_cpu(
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
    """(T, D) output in x's dtype and (P) pre-activations u . x + b, float32 (float64 for float64 tables)."""
    check(x_TD, u_EB, u_scale_E, bias_E, v_EB, v_scale_E, expert_P, start_T1, gate_P)
    return cpu.forward(x_TD, u_EB, u_scale_E, bias_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, act)


expert_sum_forward = torch.library.custom_op("legible::expert_sum", _on_cpu, mutates_args=(), device_types="cpu")


@expert_sum_forward.register_kernel("cuda")
def _(x_TD: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *tensors, act = others
    check(x_TD, *tensors)
    return cuda_kernels("expert_sum").forward(x_TD.contiguous(), *tensors, act)


@expert_sum_forward.register_fake
def _(x_TD: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, gate_P, _ = others
    return torch.empty_like(x_TD), gate_P.new_empty(gate_P.shape, dtype=_compute_dtype(x_TD))


@torch.library.custom_op("legible::expert_sum_backward", mutates_args=(), device_types="cpu")
def expert_sum_backward(
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
    """(T, D) dx in dy's dtype, (P) dgate, and (P) du and dv: the tables' gradients as coefficients of pairs.

    The gradient of row e of u is the sum over its pairs of du_P * x_token, that of v of dv_P * dy_token, that of the
    bias of du_P. No tensor of a table's size, or of the touched rows', is made. Arguments are those that the forward
    pass checked.
    """
    return cpu.backward(dy_TD, u_EB, u_scale_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, pre_P, act)


@expert_sum_backward.register_kernel("cuda")
def _(dy_TD: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return cuda_kernels("expert_sum").backward(dy_TD.contiguous(), *others)


@expert_sum_backward.register_fake
def _(dy_TD: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, pre_P, _ = others
    return torch.empty_like(dy_TD), torch.empty_like(pre_P), torch.empty_like(pre_P), torch.empty_like(pre_P)


def _compute_dtype(x_TD: Tensor) -> torch.dtype:
    return torch.float64 if x_TD.dtype == torch.float64 else torch.float32


def _save(ctx, inputs, output) -> None:  # noqa: ANN001 - torch's own protocol
    x_TD, u_EB, u_scale_E, bias_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, ctx.act = inputs
    ctx.bias_dtype = bias_E.dtype
    ctx.save_for_backward(x_TD, u_EB, u_scale_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, output[1])


def _gradients(ctx, dy_TD: Tensor, _: Tensor):  # noqa: ANN001, ANN202 - torch's own protocol
    x_TD, u_EB, u_scale_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, pre_P = ctx.saved_tensors
    dx_TD, dgate_P, du_P, dv_P = expert_sum_backward(
        dy_TD, u_EB, u_scale_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, pre_P, ctx.act
    )
    # Only a float table that an optimizer of torch's holds needs a gradient of its own size.
    wants_u, wants_bias, wants_v = (ctx.needs_input_grad[i] for i in (1, 3, 4))
    token_P = tokens_of_pairs(start_T1, len(expert_P)) if wants_u or wants_v else expert_P
    du_ED = bags.table_gradient(x_TD, expert_P, token_P, du_P, u_EB) if wants_u else None
    dv_ED = bags.table_gradient(dy_TD, expert_P, token_P, dv_P, v_EB) if wants_v else None
    dbias_E = du_P.new_zeros(len(u_EB)).index_add(0, expert_P, du_P).to(ctx.bias_dtype) if wants_bias else None
    return dx_TD, du_ED, None, dbias_E, dv_ED, None, None, None, dgate_P.to(gate_P.dtype), None


expert_sum_forward.register_autograd(_gradients, setup_context=_save)


def expert_sum(
    x_TD: Tensor,
    u_EB: Tensor,
    bias_E: Tensor,
    v_EB: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
    scales: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """(T, D): for every token the sum over its pairs of gate * act(u_e . x + b_e) * v_e (PEER eq. 2).

    Pairs lie in order of their tokens: those of token t are start_T1[t] to start_T1[t + 1] (int64). `scales` are the
    float16 (E) scales of the rows of int8 and int4 tables. Differentiable in x, bias, gate and float tables; for the
    gradients of the others see `expert_sum_backward`. ValueError names the argument that does not fit.
    """
    u_scale_E, v_scale_E = scales
    # Without gradients torch's dispatcher has nothing to add, and takes longer than a token's experts.
    direct = x_TD.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    forward = _on_cpu if direct else expert_sum_forward
    return forward(x_TD, u_EB, u_scale_E, bias_E, v_EB, v_scale_E, expert_P, start_T1, gate_P, act)[0]
