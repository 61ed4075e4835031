"""Product-key selection in Triton: one program a token and head, which keeps its two rows of scores in registers.

Sorting needs scores and their places together, and Triton sorts plain numbers: a score becomes an integer of the same
order in the upper half of an int64, its place the lower half, counted down so that ties go to the first place.
"""

# T tokens, H heads, N rows, M columns, K pairs kept, P pairs that fire
# In kernels: L is k padded to a power of two, C the candidates, R the rows of a block

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.product_key_topk.stock import hyperbola
from kernels.triton_math import launch, power_of_two

ROWS_A_PROGRAM = 32
"""Of a threshold search: enough programs for few tokens, and enough rows to skip at once."""
_LOWEST = tl.constexpr(-(2**63))


def topk(row_THN: Tensor, column_THM: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(T, H, K) scores in the rows' dtype and int64 cells (row * M + column) of the k best sums, best first.

    Sums and their order are those of float32; among equal sums the pair of the better sub-keys comes first, and among
    equal sub-keys the first. k is at most N and at most M. Scores may be -inf, not NaN.
    """
    num_tokens, num_heads, num_rows = row_THN.shape
    num_columns = column_THM.shape[2]
    i_C, j_C = (rank_C.int() for rank_C in hyperbola(k, row_THN.device))
    score_THK = torch.empty(num_tokens, num_heads, k, dtype=row_THN.dtype, device=row_THN.device)
    cell_THK = torch.empty(num_tokens, num_heads, k, dtype=torch.int64, device=row_THN.device)
    constants = topk_config(num_rows, num_columns, k)
    launch(
        _topk,
        num_tokens * num_heads,
        row_THN.contiguous(),
        column_THM.contiguous(),
        i_C,
        j_C,
        score_THK,
        cell_THK,
        num_rows,
        num_columns,
        **constants,
    )
    return score_THK, cell_THK


def topk_backward(dscore_THK: Tensor, cell_THK: Tensor, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """(T, H, N) and (T, H, M): each sub-key's sum of the gradients of the sums it is part of. No atomics."""
    num_tokens, num_heads, k = cell_THK.shape
    drow_THN = torch.empty(num_tokens, num_heads, num_rows, dtype=dscore_THK.dtype, device=dscore_THK.device)
    dcolumn_THM = torch.empty(num_tokens, num_heads, num_columns, dtype=dscore_THK.dtype, device=dscore_THK.device)
    constants = backward_config(k)
    launch(
        _topk_backward,
        num_tokens * num_heads,
        dscore_THK.contiguous(),
        cell_THK.contiguous(),
        drow_THN,
        dcolumn_THM,
        num_rows,
        num_columns,
        k,
        **constants,
    )
    return drow_THN, dcolumn_THM


def threshold(row_THN: Tensor, column_THM: Tensor, threshold_H: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) int64 token, head, row and column of every pair whose float32 sum is above its head's threshold.

    Pairs come in order of token, head, row, column. One pass counts, another one writes; in both, rows that cannot
    pass with the best column are skipped. Scores and thresholds may be -inf, not NaN.
    """
    num_tokens, num_heads, num_rows = row_THN.shape
    pieces = -(-num_rows // ROWS_A_PROGRAM)
    programs = num_tokens * num_heads * pieces
    scores = (row_THN.contiguous(), column_THM.contiguous(), threshold_H.contiguous())
    sizes = (num_heads, num_rows, column_THM.shape[2], pieces)
    constants = threshold_config()
    end_Q = torch.zeros(programs + 1, dtype=torch.int64, device=row_THN.device)
    launch(_fire, programs, *scores, end_Q[1:], None, None, None, None, *sizes, **constants, FILL=False)
    end_Q.cumsum_(0)
    found = [torch.empty(int(end_Q[-1]), dtype=torch.int64, device=row_THN.device) for _ in range(4)]
    launch(_fire, programs, *scores, end_Q, *found, *sizes, **constants, FILL=True)
    token_P, head_P, row_P, column_P = found
    return token_P, head_P, row_P, column_P


def topk_config(num_rows: int, num_columns: int, k: int) -> dict[str, int]:
    """The constants and warps of the search: some 16 keys a thread."""
    num_candidates = sum(k // i for i in range(1, k + 1))
    block_l = max(2, power_of_two(k))  # Triton's sort of one number is no tensor
    block_n, block_m, block_c = (max(block_l, power_of_two(n)) for n in (num_rows, num_columns, num_candidates))
    return {
        "BLOCK_N": block_n,
        "BLOCK_M": block_m,
        "BLOCK_L": block_l,
        "BLOCK_C": block_c,
        "K": k,
        "NUM_CANDIDATES": num_candidates,
        "num_warps": min(8, max(1, max(block_n, block_m, block_c) // 512)),
    }


def backward_config(k: int) -> dict[str, int]:
    """The constants and warps of `topk_backward`."""
    block_l = power_of_two(k)
    return {"BLOCK_L": block_l, "BLOCK": 64, "num_warps": min(8, max(1, block_l // 8))}


def threshold_config() -> dict[str, int]:
    """The constants and warps of both passes of `threshold`."""
    return {"BLOCK_R": ROWS_A_PROGRAM, "BLOCK_M": 256, "num_warps": 1}


@triton.jit
def _key(score, place, live):
    """int64 keys in the order of float32 scores, and of falling places among equals; those not live come last."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # -0 + 0 is +0: they are equal, and so are their keys
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(live, (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64), _LOWEST)


@triton.jit
def _score(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _place(key):
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _topk(
    row_ptr,
    column_ptr,
    i_ptr,
    j_ptr,
    score_ptr,
    cell_ptr,
    num_rows,
    num_columns,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
    K: tl.constexpr,
    NUM_CANDIDATES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    n_N, m_M = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    row_N = tl.load(row_ptr + program * num_rows + n_N, mask=n_N < num_rows, other=0.0).to(tl.float32)
    column_M = tl.load(column_ptr + program * num_columns + m_M, mask=m_M < num_columns, other=0.0).to(tl.float32)
    row_L = tl.topk(_key(row_N, n_N, n_N < num_rows), BLOCK_L)
    column_L = tl.topk(_key(column_M, m_M, m_M < num_columns), BLOCK_L)

    c_C = tl.arange(0, BLOCK_C)
    i_C = tl.load(i_ptr + c_C, mask=c_C < NUM_CANDIDATES, other=0)
    j_C = tl.load(j_ptr + c_C, mask=c_C < NUM_CANDIDATES, other=0)
    row_C, column_C = tl.gather(row_L, i_C, 0), tl.gather(column_L, j_C, 0)
    best_L = tl.topk(_key(_score(row_C) + _score(column_C), c_C, c_C < NUM_CANDIDATES), BLOCK_L)

    l_L = tl.arange(0, BLOCK_L)
    candidate_L = tl.where(l_L < K, _place(best_L), 0)
    row_best_L, column_best_L = tl.gather(row_C, candidate_L, 0), tl.gather(column_C, candidate_L, 0)
    cell_L = _place(row_best_L).to(tl.int64) * num_columns + _place(column_best_L)
    tl.store(score_ptr + program * K + l_L, _score(best_L).to(score_ptr.dtype.element_ty), mask=l_L < K)
    tl.store(cell_ptr + program * K + l_L, cell_L, mask=l_L < K)


@triton.jit
def _topk_backward(
    dscore_ptr,
    cell_ptr,
    drow_ptr,
    dcolumn_ptr,
    num_rows,
    num_columns,
    k,
    BLOCK_L: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    l_L = tl.arange(0, BLOCK_L)
    dscore_L = tl.load(dscore_ptr + program * k + l_L, mask=l_L < k, other=0.0).to(tl.float32)
    cell_L = tl.load(cell_ptr + program * k + l_L, mask=l_L < k, other=0)
    row_L, column_L = (cell_L // num_columns).to(tl.int32), (cell_L % num_columns).to(tl.int32)
    _scatter(drow_ptr + program * num_rows, row_L, dscore_L, num_rows, BLOCK)
    _scatter(dcolumn_ptr + program * num_columns, column_L, dscore_L, num_columns, BLOCK)


@triton.jit
def _scatter(out_ptr, place_L, value_L, size, BLOCK: tl.constexpr):
    """Every place's sum of its values, zeros among them."""
    for first in range(0, size, BLOCK):
        n_N = first + tl.arange(0, BLOCK)
        sum_N = tl.sum(tl.where(place_L[:, None] == n_N[None, :], value_L[:, None], 0.0), axis=0)
        tl.store(out_ptr + n_N, sum_N.to(out_ptr.dtype.element_ty), mask=n_N < size)


@triton.jit
def _fire(
    row_ptr,
    column_ptr,
    threshold_ptr,
    count_ptr,
    token_out_ptr,
    head_out_ptr,
    row_out_ptr,
    column_out_ptr,
    num_heads,
    num_rows,
    num_columns,
    pieces,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    FILL: tl.constexpr,
):
    """The pairs that fire of BLOCK_R rows of a token and head: their number, or with FILL the pairs themselves.

    `count_ptr` is where the number goes; with FILL it holds where the program's first pair goes.
    """
    program = tl.program_id(0).to(tl.int64)
    token_head = program // pieces
    token, head = token_head // num_heads, token_head % num_heads
    limit = tl.load(threshold_ptr + head).to(tl.float32)
    first_row = (program % pieces) * BLOCK_R
    m_M = tl.arange(0, BLOCK_M)
    best = -float("inf")
    for first in range(0, num_columns, BLOCK_M):
        place_M = first + m_M
        column_M = tl.load(
            column_ptr + token_head * num_columns + place_M, mask=place_M < num_columns, other=-float("inf")
        )
        best = tl.maximum(best, tl.max(column_M.to(tl.float32), axis=0))
    position = tl.load(count_ptr + program) if FILL else tl.zeros([], tl.int64)
    for row in range(first_row, tl.minimum(first_row + BLOCK_R, num_rows)):
        score = tl.load(row_ptr + token_head * num_rows + row).to(tl.float32)
        if score + best > limit:
            for first in range(0, num_columns, BLOCK_M):
                place_M = first + m_M
                column_M = tl.load(
                    column_ptr + token_head * num_columns + place_M, mask=place_M < num_columns, other=-float("inf")
                )
                fires_M = (score + column_M.to(tl.float32) > limit).to(tl.int32)
                if FILL:
                    out_M = position + tl.cumsum(fires_M, axis=0) - 1
                    tl.store(token_out_ptr + out_M, token, mask=fires_M > 0)
                    tl.store(head_out_ptr + out_M, head, mask=fires_M > 0)
                    tl.store(row_out_ptr + out_M, row, mask=fires_M > 0)
                    tl.store(column_out_ptr + out_M, place_M.to(tl.int64), mask=fires_M > 0)
                position += tl.sum(fires_M, axis=0)
    if not FILL:
        tl.store(count_ptr + program, position)
