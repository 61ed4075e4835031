"""expert_sum over int4 rows of several scales each, forward alone: an option for inference, on a CPU.

A row of G groups is G rows of width D / G, each with its own scale and packed by itself (kernels/packing.py). So a pair
of token t and expert e is G pairs, of piece t G + g of the tokens and row e G + g, which the CPU's passes take as they
are: the dot product of a pair is the sum of its G, and the G sums of rows of a token, side by side, are its output.
"""

# T tokens, D model width, E experts, B = D / 2 bytes of a row, P pairs (a token and one of its experts), in order of
# their tokens, G groups of a row, S = T G pieces of the tokens, F = D / G values of a group, Q = P G pairs of pieces

from typing import NoReturn

import torch
from torch import Tensor

from kernels.activations import activation
from kernels.errors import Mistake
from kernels.expert_sum import cpu
from kernels.expert_sum.checks import check
from kernels.pairs import tokens_of_pairs


def grouped_expert_sum(
    x_TD: Tensor,
    u_EB: Tensor,
    u_scale_EG: Tensor,
    bias_E: Tensor,
    v_EB: Tensor,
    v_scale_EG: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> Tensor:
    """(T, D) in x's dtype: for every token the sum over its pairs of gate * act(u_e . x + b_e) * v_e.

    Arguments are those of `expert_sum`, with float16 scales of both tables. ValueError names the one that does not fit,
    or that needs a gradient.
    """
    _check(x_TD, u_EB, u_scale_EG, bias_E, v_EB, v_scale_EG, expert_P, start_T1, gate_P)
    groups = u_scale_EG.shape[1]
    width = x_TD.shape[1] // groups
    row_Q, pair_Q, start_S1 = _pairs_of_pieces(expert_P, start_T1, groups)
    x_SF = x_TD.reshape(len(x_TD) * groups, width)
    dot_Q = cpu.row_dots(x_SF, u_EB.view(-1, width // 2), u_scale_EG.flatten(), row_Q, start_S1)
    pre_P = dot_Q.new_zeros(len(expert_P)).index_add(0, pair_Q, dot_Q) + bias_E[expert_P]
    weight_P = activation(act).f(pre_P) * gate_P
    y_SF = cpu.row_sums(v_EB.view(-1, width // 2), v_scale_EG.flatten(), row_Q, start_S1, weight_P[pair_Q], width)
    return y_SF.view(x_TD.shape).to(x_TD.dtype)


def _pairs_of_pieces(expert_P: Tensor, start_T1: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Q) row and (Q) original pair of each pair of a piece and a row, and the (S + 1) starts of the pieces' pairs."""
    count_S = start_T1.diff().repeat_interleave(groups)
    start_S1 = torch.cat([start_T1[:1], count_S.cumsum(0)])
    piece_Q = tokens_of_pairs(start_S1)
    rank_Q = torch.arange(len(piece_Q)) - start_S1[piece_Q]
    pair_Q = start_T1[piece_Q // groups] + rank_Q
    return expert_P[pair_Q] * groups + piece_Q % groups, pair_Q, start_S1


def _check(
    x_TD: Tensor,
    u_EB: Tensor,
    u_scale_EG: Tensor,
    bias_E: Tensor,
    v_EB: Tensor,
    v_scale_EG: Tensor,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
) -> None:
    """ValueError for the first argument that does not fit; what is not of groups, `expert_sum` checks."""
    if x_TD.device.type != "cpu":
        _refuse(
            f"tensors on {x_TD.device}", "CPU tensors; quantize with one scale a row (scale_groups=1) for other devices"
        )
    floats = {"x_TD": x_TD, "bias_E": bias_E, "gate_P": gate_P}
    if torch.is_grad_enabled() and (needy := [name for name, tensor in floats.items() if tensor.requires_grad]):
        _refuse(
            f"a gradient to keep for {', '.join(needy)}",
            "no gradients, as grouped scales are for inference; call it under torch.no_grad(), or train with one scale "
            "a row (scale_groups=1)",
        )
    if u_EB.dtype != torch.uint8:
        _refuse(f"u with {u_EB.dtype}", "torch.uint8, two int4 a byte (kernels/packing.py)")
    for name, scale_EG in (("u_scale_EG", u_scale_EG), ("v_scale_EG", v_scale_EG)):
        if scale_EG.ndim != 2 or scale_EG.shape != u_scale_EG.shape:
            _refuse(
                f"{name} with shape {tuple(scale_EG.shape)}", f"({len(u_EB)}, groups), as many groups in both tables"
            )
    check(x_TD, u_EB, u_scale_EG[:, 0], bias_E, v_EB, v_scale_EG[:, 0], expert_P, start_T1, gate_P)
    width, groups = x_TD.shape[1], u_scale_EG.shape[1]
    if width // 2 % groups:
        _refuse(
            f"{groups} groups for a width of {width}", "groups of one even width, so as many as divide half the width"
        )


def _refuse(got: str, wanted: str) -> NoReturn:
    raise Mistake(f"grouped_expert_sum got {got}; it takes {wanted}")
