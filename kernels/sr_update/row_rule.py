"""The rule by which table rows learn, on any grid, in stock torch ops.

A row moves by rate * clip(g / sqrt(m), -8, 8), with m the running mean square of its gradients, and lands on its grid
by rounding floor(x + u): stochastically for u uniform in [0, 1), to the nearest for u = 1/2. `sr_update` is the rule
on the grid of two nibbles; the other grids are what that one is measured against (docs/methods/int4.md).
"""

# R touched rows of width D

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.sr_update.constants import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Whole numbers, times a scale a row."""

    lowest: int
    highest: int
    units: int
    """Of this grid in what the row's scale stands for."""


NIBBLES = Grid(lowest=LOWEST, highest=HIGHEST, units=16)
"""16 w + a: int4 with an int4 accumulator; the scale is that of w."""
INT8 = Grid(lowest=-127, highest=127, units=1)
INT4 = Grid(lowest=-7, highest=7, units=1)
"""w alone: int4 without an accumulator."""


def normalised(gradient_RD: Tensor, moment_R: Tensor) -> tuple[Tensor, Tensor]:
    """(R, D) gradients in units of their row's running norm, clipped, and (R) the mean squares after this step."""
    mean_square_R = gradient_RD.square().mean(1)
    running_R = MOMENT_DECAY * moment_R + (1 - MOMENT_DECAY) * mean_square_R
    moment_R = torch.where(moment_R == 0, mean_square_R, running_R)
    root_R1 = moment_R.sqrt()[:, None]
    return torch.where(root_R1 > 0, gradient_RD / root_R1, 0.0).clamp_(-CLIP, CLIP), moment_R


def step_on(
    grid: Grid, value_RD: Tensor, scale_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(R, D) int8 values, (R) float16 scales and (R) whether they grew, one step against normalised gradients.

    `learning_rate` is in units of the weights. Where more than one in 64 values of a row would pass the grid's end,
    its scale grows by 2^(1/4), by as much as float16 rounds that to.
    """
    # Divided once, as the C++ and Triton kernels do: a number over a tensor is its product with a rounded reciprocal.
    rate_R = torch.full_like(scale_R, learning_rate * grid.units, dtype=torch.float32) / scale_R.float()
    moved_RD = value_RD - normal_RD * rate_R[:, None]
    grows_R = (moved_RD.abs() > -grid.lowest).sum(1) > moved_RD.shape[1] / 64
    new_scale_R = torch.where(grows_R, (scale_R.float() * GROWTH).half(), scale_R)
    # The ratio of the rounded scales, so that growth itself changes no weight beyond stochastic rounding.
    moved_RD *= (scale_R.float() / new_scale_R.float())[:, None]
    # floor(moved + uniform), without the sum: float32 would round it, and move values that have no gradient.
    whole_RD = torch.floor(moved_RD)
    carry_RD = uniform_RD >= 1 - (moved_RD - whole_RD)
    return (whole_RD + carry_RD).clamp_(grid.lowest, grid.highest).to(torch.int8), new_scale_R, grows_R


def to_bfloat16(value_RD: Tensor, uniform_RD: Tensor) -> Tensor:
    """(R, D) bfloat16: float32 values rounded up with the chance that their lower 16 bits give."""
    below_RD = (uniform_RD * 2**16).to(torch.int32)
    bits_RD = value_RD.contiguous().view(torch.int32) + below_RD
    return (bits_RD & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
