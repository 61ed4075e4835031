"""One training step of touched int4 rows in Triton: a program a row, which sums its gradient in registers and uses it.

The rule is that of kernels/sr_update/reference.py with the draws of kernels/philox.py, in float32 without contracted
multiply-adds, and with divisions and roots rounded to nearest, so that the bits are those of the CPU.
"""

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row, B = D / 2
# In kernels: HB the two halves of a row by the bytes that hold them, G groups of four columns

# pyright: reportGeneralTypeIssues=false
# Pyright reads kernels as Python, where `tl` functions do not return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import Mistake
from kernels.sr_update.constants import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY
from kernels.triton_math import launch, power_of_two

PAIRS_A_PROGRAM = 64
"""Rows with more pairs are summed in pieces first: one program over thousands of pairs would outlast all others."""

_CLIP, _GROWTH, _MOMENT_DECAY = tl.constexpr(CLIP), tl.constexpr(GROWTH), tl.constexpr(MOMENT_DECAY)
_LOWEST, _HIGHEST = tl.constexpr(LOWEST), tl.constexpr(HIGHEST)
_HALF_LIMIT = tl.constexpr(65520.0)
"""The least float32 that rounds to no finite float16."""


def update_rows(
    weight_EB: Tensor,
    accumulator_EB: Tensor,
    scale_E: Tensor,
    moment_E: Tensor,
    source_TD: Tensor,
    row_R: Tensor,
    start_R1: Tensor,
    token_P: Tensor,
    weight_P: Tensor,
    *,
    learning_rate: float,
    stream: int,
    step: int,
) -> tuple[int, int, int]:
    """Moves each touched row against its gradient, the sum over its pairs of weight * source[token], in place.

    Returns the values of w that changed, the rows whose scale grew, and the rows left as they were because their
    gradient, or their new scale in float16, was not finite. Rows are distinct, pairs in order of rows. ValueError for
    a width that is no multiple of 8.
    """
    width = source_TD.shape[1]
    if width % 8:
        raise Mistake(f"sr_update got rows of width {width}; its GPU kernel takes a multiple of 8: pad the rows")
    table = (weight_EB, accumulator_EB, scale_E, moment_E)
    changes_R3 = torch.empty(len(row_R), 3, dtype=torch.int32, device=row_R.device)
    begin_R, end_R = start_R1[:-1], start_R1[1:]
    is_hot_R = end_R - begin_R > PAIRS_A_PROGRAM
    constants = config(width)

    def update(rows: Tensor, source: Tensor, begin: Tensor, end: Tensor, token: Tensor, weight: Tensor) -> None:
        pairs = (source, begin[rows], end[rows], token, weight)
        rule = (learning_rate * 16, stream, step)
        launch(_update, len(rows), *table, *pairs, row_R[rows], rows, changes_R3, *rule, **constants)

    update(torch.nonzero(~is_hot_R).flatten(), source_TD, begin_R, end_R, token_P, weight_P)
    hot_H = torch.nonzero(is_hot_R).flatten()
    if len(hot_H):
        sum_QD, start_R1 = _sum_pieces(source_TD, begin_R, end_R, hot_H, token_P, weight_P)
        update(hot_H, sum_QD, start_R1[:-1], start_R1[1:], *_each_once(sum_QD))
    flips, growths, refused = changes_R3.sum(0).tolist()
    return flips, growths, refused


def _each_once(sum_QD: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and weights of pairs that add up the pieces as they are."""
    return torch.arange(len(sum_QD), device=sum_QD.device), sum_QD.new_ones(len(sum_QD))


def _sum_pieces(
    source_TD: Tensor, begin_R: Tensor, end_R: Tensor, hot_H: Tensor, token_P: Tensor, weight_P: Tensor
) -> tuple[Tensor, Tensor]:
    """(Q, D) float32 sums of pieces of at most PAIRS_A_PROGRAM pairs, and (R + 1) where each row's pieces start."""
    pieces_R = torch.zeros_like(begin_R)
    pieces_R[hot_H] = (end_R[hot_H] - begin_R[hot_H] + PAIRS_A_PROGRAM - 1) // PAIRS_A_PROGRAM
    start_R1 = torch.cat([pieces_R.new_zeros(1), pieces_R.cumsum(0)])
    row_Q = torch.repeat_interleave(pieces_R)
    rank_Q = torch.arange(len(row_Q), device=row_Q.device) - start_R1[row_Q]
    begin_Q = begin_R[row_Q] + PAIRS_A_PROGRAM * rank_Q
    end_Q = torch.minimum(begin_Q + PAIRS_A_PROGRAM, end_R[row_Q])
    width = source_TD.shape[1]
    sum_QD = torch.empty(len(row_Q), width, dtype=torch.float32, device=source_TD.device)
    constants = config(width)
    launch(_sum_piece, len(row_Q), source_TD, begin_Q, end_Q, token_P, weight_P, sum_QD, **constants)
    return sum_QD, start_R1


def config(width: int) -> dict[str, int | bool]:
    """The constants and options of both kernels for rows of this width: 8 values a thread, at most 8 warps."""
    block = max(8, power_of_two(width // 2))
    num_warps = min(8, max(1, block // 128))
    return {"WIDTH": width, "BLOCK_B": block, "num_warps": num_warps, "enable_fp_fusion": False}


@triton.jit
def _gradient(source_ptr, begin, end, token_ptr, weight_ptr, column_HB, live_HB, WIDTH: tl.constexpr):
    sum_HB = tl.zeros(column_HB.shape, tl.float32)
    for pair in range(begin, end):
        token = tl.load(token_ptr + pair).to(tl.int64)
        weight = tl.load(weight_ptr + pair).to(tl.float32)
        row_HB = tl.load(source_ptr + token * WIDTH + column_HB, mask=live_HB, other=0.0)
        sum_HB += weight * row_HB.to(tl.float32)
    return sum_HB


@triton.jit
def _sum_piece(
    source_ptr, begin_ptr, end_ptr, token_ptr, weight_ptr, sum_ptr, WIDTH: tl.constexpr, BLOCK_B: tl.constexpr
):
    piece = tl.program_id(0).to(tl.int64)
    byte_B = tl.arange(0, BLOCK_B)
    column_HB = tl.arange(0, 2)[:, None] * (WIDTH // 2) + byte_B[None, :]
    live_HB = (byte_B < WIDTH // 2)[None, :] & (column_HB < WIDTH)
    begin, end = tl.load(begin_ptr + piece), tl.load(end_ptr + piece)
    sum_HB = _gradient(source_ptr, begin, end, token_ptr, weight_ptr, column_HB, live_HB, WIDTH)
    tl.store(sum_ptr + piece * WIDTH + column_HB, sum_HB, mask=live_HB)


@triton.jit
def _total(value_HB):
    return tl.sum(tl.sum(value_HB, axis=1), axis=0)


@triton.jit
def _signed(byte_B, half_H1):
    """The two's complement nibbles of bytes, low ones first: (2, B) in [-8, 7]."""
    return (((byte_B.to(tl.int32)[None, :] >> (4 * half_H1)) & 15) ^ 8) - 8


@triton.jit
def _packed(value_HB, half_H1):
    return tl.sum((value_HB & 15) << (4 * half_H1), axis=0).to(tl.uint8)


@triton.jit
def _uniform(stream, row, step, half_H1, WIDTH: tl.constexpr, BLOCK_B: tl.constexpr):
    """(2, B) draws of kernels/philox.py: the four words of a block are those of four columns that follow each other."""
    group_HG = half_H1 * (WIDTH // 8) + tl.arange(0, BLOCK_B // 4)[None, :]
    zero_HG = group_HG * 0
    word0, word1, word2, word3 = tl.philox(
        stream, group_HG, zero_HG + row.to(tl.int32), zero_HG + step.to(tl.int32), zero_HG
    )
    word_HG4 = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return (tl.reshape(word_HG4, [2, BLOCK_B]) >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2**-24


@triton.jit(do_not_specialize=["stream", "step"])
def _update(
    weight_ptr,
    accumulator_ptr,
    scale_ptr,
    moment_ptr,
    source_ptr,
    begin_ptr,
    end_ptr,
    token_ptr,
    pair_weight_ptr,
    row_ptr,
    change_row_ptr,
    change_ptr,
    rate16,
    stream,
    step,
    WIDTH: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr + program)
    byte_B = tl.arange(0, BLOCK_B)
    live_B = byte_B < WIDTH // 2
    half_H1 = tl.arange(0, 2)[:, None]
    column_HB = half_H1 * (WIDTH // 2) + byte_B[None, :]
    live_HB = live_B[None, :] & (column_HB < WIDTH)
    place_B = row * (WIDTH // 2) + byte_B
    weight_B = tl.load(weight_ptr + place_B, mask=live_B, other=0)
    accumulator_B = tl.load(accumulator_ptr + place_B, mask=live_B, other=0)
    scale, old_moment = tl.load(scale_ptr + row).to(tl.float32), tl.load(moment_ptr + row)

    begin, end = tl.load(begin_ptr + program), tl.load(end_ptr + program)
    gradient_HB = _gradient(source_ptr, begin, end, token_ptr, pair_weight_ptr, column_HB, live_HB, WIDTH)
    mean_square = tl.div_rn(_total(gradient_HB * gradient_HB), 1.0 * WIDTH)
    moment = tl.where(old_moment == 0.0, mean_square, _MOMENT_DECAY * old_moment + (1 - _MOMENT_DECAY) * mean_square)
    is_finite = mean_square < float("inf")  # false of NaN as well
    root = tl.sqrt_rn(tl.where(is_finite & (moment > 0.0), moment, 1.0))
    normal_HB = tl.div_rn(tl.where(is_finite, gradient_HB, 0.0), root + tl.zeros_like(gradient_HB))
    normal_HB = tl.minimum(tl.maximum(normal_HB, -_CLIP), _CLIP)

    old_w_HB = _signed(weight_B, half_H1)
    latent_HB = (16 * old_w_HB + _signed(accumulator_B, half_H1)).to(tl.float32)
    moved_HB = latent_HB - tl.div_rn(rate16, scale) * normal_HB
    outside = _total((live_HB & (tl.abs(moved_HB) > -_LOWEST)).to(tl.int32))
    grows = outside * 64 > WIDTH
    grown = scale * _GROWTH
    accepted = is_finite & ((grown < _HALF_LIMIT) | (grows == 0))
    new_scale = tl.where(grows & accepted, grown, scale).to(tl.float16)
    # The ratio of the rounded scales, so that growth itself changes no weight beyond stochastic rounding.
    moved_HB = moved_HB * tl.div_rn(scale, new_scale.to(tl.float32))

    # floor(moved + uniform), without the sum: float32 would round it, and move values that have no gradient.
    whole_HB = tl.floor(moved_HB)
    uniform_HB = _uniform(stream, row, step, half_H1, WIDTH, BLOCK_B)
    moved_up_HB = tl.where(uniform_HB >= 1.0 - (moved_HB - whole_HB), whole_HB + 1.0, whole_HB)
    q_HB = tl.minimum(tl.maximum(moved_up_HB, _LOWEST), _HIGHEST).to(tl.int32)
    w_HB = (q_HB + 8) >> 4
    written_B = byte_B < tl.where(accepted, WIDTH // 2, 0)
    tl.store(weight_ptr + place_B, _packed(w_HB, half_H1), mask=written_B)
    tl.store(accumulator_ptr + place_B, _packed(q_HB - 16 * w_HB, half_H1), mask=written_B)
    tl.store(scale_ptr + row, new_scale, mask=accepted)
    tl.store(moment_ptr + row, moment, mask=accepted)

    change = change_ptr + 3 * tl.load(change_row_ptr + program)
    flips = _total((live_HB & (w_HB != old_w_HB)).to(tl.int32))
    tl.store(change, tl.where(accepted, flips, 0))
    tl.store(change + 1, (accepted & grows).to(tl.int32))
    tl.store(change + 2, tl.where(accepted, 0, 1))
