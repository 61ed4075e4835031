"""One step of an int4 table by stock torch ops: gradients exist for a piece of the touched rows at a time."""

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row

import torch
from torch import Tensor

from kernels.expert_sum.bags import bag_sum
from kernels.packing import latent, split_latent
from kernels.philox import row_uniforms
from kernels.sr_update.row_rule import NIBBLES, normalised, step_on

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
    normal_RD, moment_R = normalised(gradient_RD, moment_E[row_R])
    old_weight_RB = weight_EB[row_R]
    latent_RD = latent(old_weight_RB, accumulator_EB[row_R])
    q_RD, new_scale_R, grows_R = step_on(NIBBLES, latent_RD, scale_E[row_R], normal_RD, uniform_RD, learning_rate)
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
