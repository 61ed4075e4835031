"""Float rows to int8 and int4: symmetric, with one scale a row, or one for each of its groups of values."""

# D model width, E experts, G groups of a row with a scale each, S groups of all rows, F values of a group

import torch
from torch import Tensor

SMALLEST_SCALE = 2.0**-14
"""Below it float16 is subnormal and rounds coarsely; a row this small contributes nothing."""

LARGEST_SCALE = torch.finfo(torch.float16).max

INT8_MOST, INT4_MOST = 127, 7
"""The largest absolute values that tables hold: symmetric, so that a row and its negative round alike."""


def absmax_scales(rows_ED: Tensor, most: int, groups: int = 1) -> Tensor:
    """(E, G) float32 scales that put the largest absolute value of each group of a row at `most`.

    ValueError names a row that is not finite, or whose scale is too large for float16.
    """
    largest_EG = rows_ED.unflatten(1, (groups, rows_ED.shape[1] // groups)).abs().amax(2)
    finite_E = torch.isfinite(largest_EG).all(1)
    if not bool(finite_E.all()):
        row = int(finite_E.logical_not().nonzero()[0])
        raise ValueError(
            f"row {row} holds a value that is not finite, and has no scale; "
            "the model diverged: train it again with a lower learning rate"
        )
    if bool((largest_EG > most * LARGEST_SCALE).any()):
        row = int(largest_EG.amax(1).argmax())
        raise ValueError(
            f"row {row} holds {float(largest_EG[row].max()):.17g}; with a float16 scale a row holds at most "
            f"{most} * {LARGEST_SCALE:.0f} = {most * LARGEST_SCALE:.0f}: train the model with a lower learning rate or "
            "more weight decay"
        )
    return largest_EG / most


def rows_below_smallest_scale(rows_ED: Tensor, most: int, groups: int) -> int:
    """Rows, not of zeros, whose scale float16 would round coarsely, so that a larger one is taken."""
    scale_EG = absmax_scales(rows_ED, most, groups)
    return int(((scale_EG > 0) & (scale_EG < SMALLEST_SCALE)).any(1).sum())


def quantize_int8(rows_ED: Tensor) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values and (E) float16 scales: symmetric, the largest absolute value of a row at 127."""
    scale_E = absmax_scales(rows_ED, INT8_MOST)[:, 0].clamp(min=SMALLEST_SCALE).half()
    value_ED = (rows_ED / scale_E.float()[:, None]).round().clamp(-INT8_MOST, INT8_MOST)
    return value_ED.to(torch.int8), scale_E


def quantize_int4(rows_ED: Tensor, clips: int, groups: int = 1) -> tuple[Tensor, Tensor]:
    """(E, D) int8 values in [-7, 7] and float16 scales of one step: (E), or (E, G) of more groups than one.

    Of `clips` scales from 0.5 to 1 of the absmax scale, each group of a row takes the one of least squared error.
    """
    full_S = absmax_scales(rows_ED, INT4_MOST, groups).flatten()
    group_SF = rows_ED.reshape(len(full_S), rows_ED.shape[1] // groups)
    best_value_SF = torch.zeros_like(group_SF, dtype=torch.int8)
    best_scale_S = torch.zeros_like(full_S, dtype=torch.float16)
    best_error_S = torch.full_like(full_S, torch.inf)
    for share in torch.linspace(1.0, 0.5, clips).tolist():
        scale_S = (full_S * share).clamp(min=SMALLEST_SCALE).half()
        value_SF = (group_SF / scale_S.float()[:, None]).round().clamp(-INT4_MOST, INT4_MOST)
        error_S = (value_SF * scale_S.float()[:, None] - group_SF).square().sum(1)
        better_S = error_S < best_error_S
        best_value_SF[better_S] = value_SF[better_S].to(torch.int8)
        best_scale_S[better_S], best_error_S[better_S] = scale_S[better_S], error_S[better_S]
    return best_value_SF.view_as(rows_ED), best_scale_S if groups == 1 else best_scale_S.view(-1, groups)
