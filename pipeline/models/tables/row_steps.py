"""How rows of whole numbers times a scale start, and one step of them by the row rule."""

# D model width, E experts, R rows, T those of them that take the step

import torch
from torch import Tensor

from kernels.sr_update.row_rule import NIBBLES, Grid, step_on

CLIP_DEVIATIONS = 2.7
"""Where int4 clips a row of normal weights: near the least squared error of 15 levels (research prototype)."""


def first_latents(weight_RD: Tensor, uniform_RD: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) int8 latents 16 w + a of N(0, 1 / D) weights, and the one float16 scale of w in all rows."""
    scale = torch.tensor(CLIP_DEVIATIONS * weight_RD.shape[1] ** -0.5 / 7.5).half()
    q_RD = torch.floor(weight_RD * (NIBBLES.units / scale.float()) + uniform_RD)
    return q_RD.clamp(NIBBLES.lowest, NIBBLES.highest).to(torch.int8), scale


def stepped(
    grid: Grid,
    value_RD: Tensor,
    scale_E: Tensor,
    row_R: Tensor,
    normal_RD: Tensor,
    uniform_RD: Tensor,
    learning_rate: float,
) -> tuple[Tensor, Tensor]:
    """(T) those of the rows that move, and their (T, D) new values; their new scales are written into `scale_E`.

    A row whose scale would leave float16 stays.
    """
    q_RD, scale_R, _ = step_on(grid, value_RD.float(), scale_E[row_R], normal_RD, uniform_RD, learning_rate)
    takes_R = torch.isfinite(scale_R)
    row_T = row_R[takes_R]
    scale_E[row_T] = scale_R[takes_R]
    return row_T, q_RD[takes_R]
