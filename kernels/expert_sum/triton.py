"""`expert_sum` in Triton: one program a token, which reads the rows of its experts once and writes no copy of them.

Forward and backward are one pattern: the token's row meets the rows of one table (their dot products), each product
becomes a coefficient, and the rows of the other table are summed with the coefficients. Forward dots u and sums v,
backward dots v and sums u. Rows of both tables are asked for before either is used, so that both are in flight.
"""

# T tokens, D model width, E table rows, P pairs (a token and one of its experts), in order of their tokens
# In kernels: K pairs of a block, W words of eight int4 values

# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Triton unrolls `tl.static_range` and carries tuples through loops; pyright reads kernels as Python.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.errors import Mistake
from kernels.triton_math import activate, activate_derivative, launch, nibble, power_of_two

_PRECISIONS = {torch.float32: "float", torch.bfloat16: "half", torch.float16: "half", torch.int8: "int8"}


def forward(
    x_TD: Tensor,
    u: Tensor,
    u_scale_E: Tensor | None,
    bias_E: Tensor,
    v: Tensor,
    v_scale_E: Tensor | None,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor]:
    """(T, D) output in x's dtype, and (P) float32 pre-activations u_e . x + b_e, which the backward pass reads.

    A table is (E, D) of float32, bfloat16 or float16 with no scale; (E, D) int8 or (E, D / 2) uint8 of packed int4
    (kernels/packing.py) with float16 scales (E). ValueError for int4 rows whose width is no multiple of 8.
    """
    y_TD = torch.empty_like(x_TD)
    pre_P = torch.empty(len(expert_P), dtype=torch.float32, device=x_TD.device)
    pairs = (bias_E, expert_P, start_T1, gate_P, pre_P, None, None, None)
    _launch(x_TD, u, u_scale_E, v, v_scale_E, pairs, y_TD, act, backward=False)
    return y_TD, pre_P


def backward(
    dy_TD: Tensor,
    u: Tensor,
    u_scale_E: Tensor | None,
    v: Tensor,
    v_scale_E: Tensor | None,
    expert_P: Tensor,
    start_T1: Tensor,
    gate_P: Tensor,
    pre_P: Tensor,
    act: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(T, D) dx in dy's dtype; (P) float32 dgate; and (P) float32 du and dv, the rows' gradients as coefficients.

    The gradient of row e of u is the sum over the expert's pairs of du * x_token, of v that of dv * dy_token, of the
    bias that of du. Tables as `forward` takes them, with the same ValueError.
    """
    dx_TD = torch.empty_like(dy_TD)
    dgate_P, du_P, dv_P = (torch.empty_like(pre_P) for _ in range(3))
    pairs = (None, expert_P, start_T1, gate_P, pre_P, dgate_P, du_P, dv_P)
    _launch(dy_TD, v, v_scale_E, u, u_scale_E, pairs, dx_TD, act, backward=True)
    return dx_TD, dgate_P, du_P, dv_P


def _launch(
    source_TD: Tensor,
    dotted: Tensor,
    dotted_scale_E: Tensor | None,
    summed: Tensor,
    summed_scale_E: Tensor | None,
    pairs: tuple[Tensor | None, ...],
    out_TD: Tensor,
    act: str,
    *,
    backward: bool,
) -> None:
    num_tokens, width = source_TD.shape
    packed = dotted.dtype == torch.uint8
    if packed and width % 8:
        raise Mistake(
            f"expert_sum got int4 tables of width {width}; its GPU kernel takes a multiple of 8: pad the rows"
        )
    if packed:
        dotted, summed = dotted.view(torch.int32), summed.view(torch.int32)
    tables = (dotted, dotted_scale_E, summed, summed_scale_E)
    kernel, constants = config(width, "int4" if packed else _PRECISIONS[dotted.dtype])
    launch(kernel, num_tokens, source_TD, *tables, *pairs, out_TD, **constants, ACT=act, BACKWARD=backward)


def config(width: int, precision: str) -> tuple[Any, dict[str, int]]:
    """The kernel for rows of this width, and its constants and warps; precision is float, half, int8 or int4.

    Chosen by compiling for sm_80, sm_90 and gfx942 (tests/kernels/triton/aot.py): no spills, and registers for as many
    programs as have 48 KB of table rows in flight a multiprocessor, twice an H200's bandwidth times its latency
    (computed, not measured).
    """
    if precision == "int4":
        block = power_of_two(width // 8)
        block_pairs = 8 if block > 32 else 16
        return _words, {"WIDTH": width, "BLOCK_W": block, "BLOCK_K": block_pairs, "num_warps": max(1, block // 128)}
    block = power_of_two(width)
    block_pairs = 4 if precision == "float" else 8
    return _rows, {"WIDTH": width, "BLOCK_D": block, "BLOCK_K": block_pairs, "num_warps": max(1, block // 256)}


@triton.jit
def _rows(
    source_ptr,
    dotted_ptr,
    dotted_scale_ptr,
    summed_ptr,
    summed_scale_ptr,
    bias_ptr,
    expert_ptr,
    start_ptr,
    gate_ptr,
    pre_ptr,
    dgate_ptr,
    du_ptr,
    dv_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Tables of one value an element; int8 ones have scales."""
    token = tl.program_id(0).to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    wide_D = column_D < WIDTH
    source_D = tl.load(source_ptr + token * WIDTH + column_D, mask=wide_D, other=0.0).to(tl.float32)
    out_D = tl.zeros([BLOCK_D], tl.float32)
    end = tl.load(start_ptr + token + 1)
    for first in range(tl.load(start_ptr + token), end, BLOCK_K):
        pair_K = first + tl.arange(0, BLOCK_K)
        live_K = pair_K < end
        expert_K = tl.load(expert_ptr + pair_K, mask=live_K, other=0)
        cell_KD = expert_K[:, None] * WIDTH + column_D[None, :]
        live_KD = live_K[:, None] & wide_D[None, :]
        dotted_KD = tl.load(dotted_ptr + cell_KD, mask=live_KD, other=0)
        summed_KD = tl.load(summed_ptr + cell_KD, mask=live_KD, other=0)
        dot_K = tl.sum(dotted_KD.to(tl.float32) * source_D[None, :], axis=1)
        if dotted_scale_ptr is not None:
            dot_K *= tl.load(dotted_scale_ptr + expert_K).to(tl.float32)
        weight_K = _coefficient(
            dot_K, expert_K, pair_K, live_K, bias_ptr, gate_ptr, pre_ptr, dgate_ptr, du_ptr, dv_ptr, ACT, BACKWARD
        )
        if summed_scale_ptr is not None:
            weight_K *= tl.load(summed_scale_ptr + expert_K).to(tl.float32)
        out_D += tl.sum(summed_KD.to(tl.float32) * weight_K[:, None], axis=0)
    tl.store(out_ptr + token * WIDTH + column_D, out_D.to(out_ptr.dtype.element_ty), mask=wide_D)


@triton.jit
def _words(
    source_ptr,
    dotted_ptr,
    dotted_scale_ptr,
    summed_ptr,
    summed_scale_ptr,
    bias_ptr,
    expert_ptr,
    start_ptr,
    gate_ptr,
    pre_ptr,
    dgate_ptr,
    du_ptr,
    dv_ptr,
    out_ptr,
    WIDTH: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Packed int4 tables, read as int32: nibble S of word j is element 4 j + S // 2, in the second half for odd S."""
    token = tl.program_id(0).to(tl.int64)
    word_W = tl.arange(0, BLOCK_W)
    wide_W = word_W < WIDTH // 8
    source, out = (), ()
    for S in tl.static_range(8):
        column_W = 4 * word_W + (S % 2) * (WIDTH // 2) + S // 2
        source += (tl.load(source_ptr + token * WIDTH + column_W, mask=wide_W, other=0.0).to(tl.float32),)
        out += (tl.zeros([BLOCK_W], tl.float32),)
    end = tl.load(start_ptr + token + 1)
    for first in range(tl.load(start_ptr + token), end, BLOCK_K):
        pair_K = first + tl.arange(0, BLOCK_K)
        live_K = pair_K < end
        expert_K = tl.load(expert_ptr + pair_K, mask=live_K, other=0)
        cell_KW = expert_K[:, None] * (WIDTH // 8) + word_W[None, :]
        live_KW = live_K[:, None] & wide_W[None, :]
        dotted_KW = tl.load(dotted_ptr + cell_KW, mask=live_KW, other=0) ^ -2004318072  # 0x88888888
        summed_KW = tl.load(summed_ptr + cell_KW, mask=live_KW, other=0) ^ -2004318072
        dot_KW = nibble(dotted_KW, 0) * source[0][None, :]
        for S in tl.static_range(1, 8):
            dot_KW += nibble(dotted_KW, S) * source[S][None, :]
        dot_K = tl.sum(dot_KW, axis=1) * tl.load(dotted_scale_ptr + expert_K).to(tl.float32)
        weight_K = _coefficient(
            dot_K, expert_K, pair_K, live_K, bias_ptr, gate_ptr, pre_ptr, dgate_ptr, du_ptr, dv_ptr, ACT, BACKWARD
        )
        weight_K *= tl.load(summed_scale_ptr + expert_K).to(tl.float32)
        longer = ()
        for S in tl.static_range(8):
            longer += (out[S] + tl.sum(nibble(summed_KW, S) * weight_K[:, None], axis=0),)
        out = longer
    for S in tl.static_range(8):
        column_W = 4 * word_W + (S % 2) * (WIDTH // 2) + S // 2
        tl.store(out_ptr + token * WIDTH + column_W, out[S].to(out_ptr.dtype.element_ty), mask=wide_W)


@triton.jit
def _coefficient(
    dot_K,
    expert_K,
    pair_K,
    live_K,
    bias_ptr,
    gate_ptr,
    pre_ptr,
    dgate_ptr,
    du_ptr,
    dv_ptr,
    ACT: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """What each summed row is weighted with; writes what the pass owes each pair."""
    gate_K = tl.load(gate_ptr + pair_K, mask=live_K, other=0.0).to(tl.float32)
    if BACKWARD:
        pre_K = tl.load(pre_ptr + pair_K, mask=live_K, other=0.0)
        hidden_K = activate(pre_K, ACT)
        weight_K = gate_K * activate_derivative(pre_K, ACT) * dot_K
        tl.store(dgate_ptr + pair_K, hidden_K * dot_K, mask=live_K)
        tl.store(du_ptr + pair_K, weight_K, mask=live_K)
        tl.store(dv_ptr + pair_K, gate_K * hidden_K, mask=live_K)
    else:
        pre_K = dot_K + tl.load(bias_ptr + expert_K).to(tl.float32)
        tl.store(pre_ptr + pair_K, pre_K, mask=live_K)
        weight_K = gate_K * activate(pre_K, ACT)
    return weight_K
