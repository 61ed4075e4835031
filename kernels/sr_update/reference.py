"""The oracle of `sr_update`: the two-nibble rule for one table row at a time, in plain numbers. Never optimised.

The rule, its sources and its ablation are in docs/methods/int4.md. In short: latent q = 16 w + a in [-120, 119] with
w in [-7, 7] what the forward pass reads and a in [-8, 7] the accumulator; a step moves q by a stochastically
rounded multiple of the row-normalised gradient.
"""

import math

from kernels.sr_update.constants import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY


def sr_update_row(
    q_D: list[int],
    scale: float,
    moment: float,
    gradient_D: list[float],
    uniform_D: list[float],
    learning_rate: float,
) -> tuple[list[int], float, float]:
    """(latent row, scale of one int4 step, second moment) after one step. Growth of the scale is not rounded here."""
    mean_square = sum(g * g for g in gradient_D) / len(gradient_D)
    moment = mean_square if moment == 0 else MOMENT_DECAY * moment + (1 - MOMENT_DECAY) * mean_square
    if moment == 0:
        return q_D, scale, moment
    normal_D = [max(-CLIP, min(CLIP, g / math.sqrt(moment))) for g in gradient_D]
    moved_D = [q - learning_rate * g * 16 / scale for q, g in zip(q_D, normal_D, strict=True)]
    if sum(abs(x) > -LOWEST for x in moved_D) > len(q_D) / 64:
        scale, moved_D = scale * GROWTH, [x / GROWTH for x in moved_D]
    rounded_D = [math.floor(x + u) for x, u in zip(moved_D, uniform_D, strict=True)]
    return [max(LOWEST, min(HIGHEST, q)) for q in rounded_D], scale, moment
