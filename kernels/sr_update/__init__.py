"""sr_update: one training step of an int4 table whose gradients are accumulated by a second int4 table.

State a row of d values: nibbles w (read by the forward pass), nibbles a (the accumulator), the scale of one int4
step, the running mean square of its gradients. 1 byte a parameter and 6 bytes a row; no float copy, and the gradient
exists only for `ROWS_A_PIECE` rows at a time.
"""

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.expert_sum.bags import bag_sum
from kernels.packing import pack_int4, unpack_int4
from kernels.sr_update.reference import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY

ROWS_A_PIECE = 8192


@dataclass(frozen=True, slots=True)
class NibbleTable:
    """The trainable int4 table. Tensors are updated in place."""

    weight_EB: Tensor
    """uint8, two nibbles w in [-7, 7] a byte (kernels/packing.py)."""
    accumulator_EB: Tensor
    """uint8, two nibbles a in [-8, 7] a byte."""
    scale_E: Tensor
    """float16, the weight that one step of w stands for."""
    moment_E: Tensor
    """float32, running mean square of the row's gradients; 0 for a row never touched."""


@dataclass(frozen=True, slots=True)
class RowGradients:
    """A table's gradient as weighted token rows: that of row r is the sum over its pairs of weight * source."""

    source_TD: Tensor
    row_R: Tensor
    start_R1: Tensor
    """Where each touched row's pairs start, int64."""
    token_P: Tensor
    weight_P: Tensor


@dataclass(frozen=True, slots=True)
class UpdateCounts:
    rows: int
    flips: int
    """Values of w that changed."""
    growths: int
    """Rows whose scale grew because too many values met the end of the range."""


def latent(weight_EB: Tensor, accumulator_EB: Tensor) -> Tensor:
    """(E, D) int8: q = 16 w + a, which is also the exact int8 view of the table, with scale / 16."""
    return unpack_int4(weight_EB) * 16 + unpack_int4(accumulator_EB)


def split_latent(q_ED: Tensor) -> tuple[Tensor, Tensor]:
    """(E, B) packed w and a of latent values in [-120, 119]: w is q / 16 rounded to nearest."""
    wide = q_ED.to(torch.int16)
    w_ED = (wide + 8) >> 4
    return pack_int4(w_ED.to(torch.int8)), pack_int4((wide - 16 * w_ED).to(torch.int8))


def sr_update(
    table: NibbleTable, gradients: RowGradients, *, learning_rate: float, key: tuple[int, int]
) -> UpdateCounts:
    """Moves the touched rows one step against their gradients, rounding stochastically with Philox(key).

    `learning_rate` is in units of the weights for a gradient of unit row norm (root mean square). The same key, table
    and gradients give the same bits. ValueError for a gradient that is not finite, or a scale that leaves float16.
    """
    stream = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    flips = growths = 0
    for first in range(0, len(gradients.row_R), ROWS_A_PIECE):
        row_R = gradients.row_R[first : first + ROWS_A_PIECE]
        start_R1 = gradients.start_R1[first : first + len(row_R) + 1]
        pairs = slice(int(start_R1[0]), int(start_R1[-1]))
        gradient_RD = bag_sum(
            gradients.source_TD, gradients.token_P[pairs], start_R1 - start_R1[0], gradients.weight_P[pairs]
        )
        uniform_RD = torch.from_numpy(stream.random(gradient_RD.shape, dtype=np.float32)).to(gradient_RD.device)
        piece_flips, piece_growths = _update_rows(table, row_R, gradient_RD, uniform_RD, learning_rate)
        flips, growths = flips + piece_flips, growths + piece_growths
    return UpdateCounts(rows=len(gradients.row_R), flips=flips, growths=growths)


def _update_rows(
    table: NibbleTable, row_R: Tensor, gradient_RD: Tensor, uniform_RD: Tensor, learning_rate: float
) -> tuple[int, int]:
    if not bool(torch.isfinite(gradient_RD).all()):
        raise ValueError("sr_update got a gradient that is not finite; lower the learning rate or skip the batch")
    mean_square_R = gradient_RD.square().mean(1)
    old_R = table.moment_E[row_R]
    moment_R = torch.where(old_R == 0, mean_square_R, MOMENT_DECAY * old_R + (1 - MOMENT_DECAY) * mean_square_R)
    root_R1 = moment_R.sqrt()[:, None]
    normal_RD = torch.where(root_R1 > 0, gradient_RD / root_R1, 0.0).clamp(-CLIP, CLIP)

    old_weight_RB = table.weight_EB[row_R]
    scale_R = table.scale_E[row_R]
    step_R1 = learning_rate * 16 / scale_R.float()[:, None]
    moved_RD = latent(old_weight_RB, table.accumulator_EB[row_R]) - step_R1 * normal_RD

    grows_R = (moved_RD.abs() > -LOWEST).sum(1) > gradient_RD.shape[1] / 64
    new_scale_R = torch.where(grows_R, (scale_R.float() * GROWTH).half(), scale_R)
    if not bool(torch.isfinite(new_scale_R).all()):
        raise ValueError("sr_update: a row's scale left the range of float16; lower the learning rate")
    # The ratio of the rounded scales, so that growth itself changes no weight beyond stochastic rounding.
    moved_RD = moved_RD * (scale_R.float() / new_scale_R.float())[:, None]

    # floor(moved + uniform), without the sum: float32 would round it, and move values that have no gradient.
    whole_RD = torch.floor(moved_RD)
    carry_RD = uniform_RD >= 1 - (moved_RD - whole_RD)
    q_RD = (whole_RD + carry_RD).clamp(LOWEST, HIGHEST).to(torch.int8)
    weight_RB, accumulator_RB = split_latent(q_RD)
    table.weight_EB[row_R] = weight_RB
    table.accumulator_EB[row_R] = accumulator_RB
    table.scale_E[row_R] = new_scale_R
    table.moment_E[row_R] = moment_R
    flips = int((unpack_int4(weight_RB) != unpack_int4(old_weight_RB)).sum())
    return flips, int(grows_R.sum())
