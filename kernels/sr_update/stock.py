"""One step of an int4 table by stock torch ops: gradients exist for a piece of the touched rows at a time."""

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row

import torch
from torch import Tensor

from kernels.expert_sum.bags import bag_sum
from kernels.packing import latent, split_latent
from kernels.philox import row_uniforms
from kernels.sr_update.reference import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY

VALUES_A_PIECE = 2**17
"""Half a megabyte of float32: a piece's dozen passes stay in a core's second cache."""


def sr_update(
    weight_EB: Tensor,
    accumulator_EB: Tensor,
    scale_E: Tensor,
    moment_E: Tensor,
    source_TD: Tensor,
    row_R: Tensor,
    start_R1: Tensor,
    token_P: Tensor,
    weight_P: Tensor,
    learning_rate: float,
    stream: int,
    step: int,
) -> Tensor:
    """(3) int64: values of w that changed, rows whose scale grew, rows refused. The table is updated in place."""
    counts = torch.zeros(3, dtype=torch.int64)
    width = source_TD.shape[1]
    rows_a_piece = max(1, VALUES_A_PIECE // max(1, width))
    for first in range(0, len(row_R), rows_a_piece):
        piece_R = row_R[first : first + rows_a_piece]
        start_R1_ = start_R1[first : first + len(piece_R) + 1]
        pairs = slice(int(start_R1_[0]), int(start_R1_[-1]))
        gradient_RD = bag_sum(source_TD, token_P[pairs], start_R1_ - pairs.start, weight_P[pairs])
        uniform_RD = row_uniforms(piece_R, width, stream=stream, step=step)
        counts += _update_rows(
            weight_EB, accumulator_EB, scale_E, moment_E, piece_R, gradient_RD, uniform_RD, learning_rate
        )
    return counts


def _update_rows(
    weight_EB: Tensor,
    accumulator_EB: Tensor,
    scale_E: Tensor,
    moment_E: Tensor,
    row_R: Tensor,
    gradient_RD: Tensor,
    uniform_RD: Tensor,
    learning_rate: float,
) -> Tensor:
    mean_square_R = gradient_RD.square().mean(1)
    old_R = moment_E[row_R]
    moment_R = torch.where(old_R == 0, mean_square_R, MOMENT_DECAY * old_R + (1 - MOMENT_DECAY) * mean_square_R)
    root_R1 = moment_R.sqrt()[:, None]
    normal_RD = torch.where(root_R1 > 0, gradient_RD / root_R1, 0.0).clamp_(-CLIP, CLIP)

    old_weight_RB = weight_EB[row_R]
    scale_R = scale_E[row_R]
    # Divided once, as the C++ and Triton kernels do: a number over a tensor is its product with a rounded reciprocal.
    step_R1 = (torch.full_like(moment_R, learning_rate * 16) / scale_R.float())[:, None]
    moved_RD = latent(old_weight_RB, accumulator_EB[row_R]) - normal_RD.mul_(step_R1)

    grows_R = (moved_RD.abs() > -LOWEST).sum(1) > gradient_RD.shape[1] / 64
    new_scale_R = torch.where(grows_R, (scale_R.float() * GROWTH).half(), scale_R)
    # The ratio of the rounded scales, so that growth itself changes no weight beyond stochastic rounding.
    moved_RD *= (scale_R.float() / new_scale_R.float())[:, None]

    # floor(moved + uniform), without the sum: float32 would round it, and move values that have no gradient.
    whole_RD = torch.floor(moved_RD)
    carry_RD = uniform_RD >= 1 - (moved_RD - whole_RD)
    q_RD = (whole_RD + carry_RD).clamp_(LOWEST, HIGHEST).to(torch.int8)
    weight_RB, accumulator_RB = split_latent(q_RD)

    takes_R = torch.isfinite(moment_R) & torch.isfinite(new_scale_R)
    taken = takes_R.nonzero()[:, 0]
    changed_RB = (weight_RB ^ old_weight_RB)[taken]
    if len(taken) < len(row_R):
        row_R, weight_RB, accumulator_RB = row_R[taken], weight_RB[taken], accumulator_RB[taken]
        new_scale_R, moment_R, grows_R = new_scale_R[taken], moment_R[taken], grows_R[taken]
    weight_EB[row_R] = weight_RB
    accumulator_EB[row_R] = accumulator_RB
    scale_E[row_R] = new_scale_R
    moment_E[row_R] = moment_R
    flips = ((changed_RB & 0x0F) != 0).sum() + ((changed_RB & 0xF0) != 0).sum()
    return torch.stack([flips, grows_R.sum(), (~takes_R).sum()])
