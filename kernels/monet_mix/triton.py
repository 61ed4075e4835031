"""`monet_mix` in Triton: one program a token, head by head, without a (T, I, J) tensor."""

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert
# In kernels: S sub-experts of a block of either axis; H and M whole, padded to powers of two

# pyright: reportGeneralTypeIssues=false
# Pyright reads kernels as Python, where `tl` functions do not return.

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_math import launch, power_of_two


def forward(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> tuple[Tensor, Tensor]:
    """(T, J, M) sum over h, i of to_hj * from_hi * hidden_im in hidden's dtype; and (T, H, M) float32 sums over i."""
    num_tokens, num_from, num_units = hidden_TIM.shape
    num_heads, num_to = to_THJ.shape[1:]
    out_TJM = torch.empty(num_tokens, num_to, num_units, dtype=hidden_TIM.dtype, device=hidden_TIM.device)
    head_THM = torch.empty(num_tokens, num_heads, num_units, dtype=torch.float32, device=hidden_TIM.device)
    constants = config(num_heads, num_units)
    launch(
        _forward,
        num_tokens,
        hidden_TIM.contiguous(),
        from_THI.contiguous(),
        to_THJ.contiguous(),
        out_TJM,
        head_THM,
        num_from,
        num_to,
        **constants,
    )
    return out_TJM, head_THM


def backward(
    dout_TJM: Tensor, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor, head_THM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden (T, I, M), from (T, H, I) and to (T, H, J), each in its own dtype; head is forward's."""
    num_tokens, num_from, num_units = hidden_TIM.shape
    num_heads, num_to = to_THJ.shape[1:]
    gradients = tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (hidden_TIM, from_THI, to_THJ))
    constants = config(num_heads, num_units)
    launch(
        _backward,
        num_tokens,
        dout_TJM.contiguous(),
        hidden_TIM.contiguous(),
        from_THI.contiguous(),
        to_THJ.contiguous(),
        head_THM.contiguous(),
        *gradients,
        num_from,
        num_to,
        **constants,
    )
    dhidden_TIM, dfrom_THI, dto_THJ = gradients
    return dhidden_TIM, dfrom_THI, dto_THJ


def config(num_heads: int, num_units: int) -> dict[str, int]:
    """The constants and warps of both kernels: some 16 products of a block a thread, at most 64 sub-experts a block."""
    block_h, block_m = power_of_two(num_heads), power_of_two(num_units)
    block_s = min(64, max(2, 2048 // (block_h * block_m)))
    return {
        "H": num_heads,
        "M": num_units,
        "BLOCK_H": block_h,
        "BLOCK_M": block_m,
        "BLOCK_S": block_s,
        "num_warps": min(8, max(1, block_h * block_m * block_s // 512)),
    }


@triton.jit
def _places(
    first, size, H: tl.constexpr, M: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_S: tl.constexpr
):
    """Where a block of sub-experts lies in a token's (H, S) gates and in its (S, M) units, and what of it exists."""
    h_H1, m_1M = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_M)[None, :]
    s_S = first + tl.arange(0, BLOCK_S)
    gate_HS, unit_SM = h_H1 * size + s_S[None, :], s_S[:, None] * M + m_1M
    live_HS = (h_H1 < H) & (s_S < size)[None, :]
    live_SM = (s_S < size)[:, None] & (m_1M < M)
    return gate_HS, live_HS, unit_SM, live_SM


@triton.jit
def _forward(
    hidden_ptr,
    from_ptr,
    to_ptr,
    out_ptr,
    head_ptr,
    num_from,
    num_to,
    H: tl.constexpr,
    M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head_HM = tl.zeros([BLOCK_H, BLOCK_M], tl.float32)
    for first in range(0, num_from, BLOCK_S):
        gate_HS, live_HS, unit_SM, live_SM = _places(first, num_from, H, M, BLOCK_H, BLOCK_M, BLOCK_S)
        from_HS = tl.load(from_ptr + token * H * num_from + gate_HS, mask=live_HS, other=0.0).to(tl.float32)
        hidden_SM = tl.load(hidden_ptr + token * num_from * M + unit_SM, mask=live_SM, other=0.0).to(tl.float32)
        head_HM += tl.sum(from_HS[:, :, None] * hidden_SM[None, :, :], axis=1)
    h_H1, m_1M = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_M)[None, :]
    tl.store(head_ptr + token * H * M + h_H1 * M + m_1M, head_HM, mask=(h_H1 < H) & (m_1M < M))
    for first in range(0, num_to, BLOCK_S):
        gate_HS, live_HS, unit_SM, live_SM = _places(first, num_to, H, M, BLOCK_H, BLOCK_M, BLOCK_S)
        to_HS = tl.load(to_ptr + token * H * num_to + gate_HS, mask=live_HS, other=0.0).to(tl.float32)
        out_SM = tl.sum(to_HS[:, :, None] * head_HM[:, None, :], axis=0)
        tl.store(out_ptr + token * num_to * M + unit_SM, out_SM.to(out_ptr.dtype.element_ty), mask=live_SM)


@triton.jit
def _backward(
    dout_ptr,
    hidden_ptr,
    from_ptr,
    to_ptr,
    head_ptr,
    dhidden_ptr,
    dfrom_ptr,
    dto_ptr,
    num_from,
    num_to,
    H: tl.constexpr,
    M: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    h_H1, m_1M = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_M)[None, :]
    live_HM = (h_H1 < H) & (m_1M < M)
    head_HM = tl.load(head_ptr + token * H * M + h_H1 * M + m_1M, mask=live_HM, other=0.0).to(tl.float32)
    dhead_HM = tl.zeros([BLOCK_H, BLOCK_M], tl.float32)
    for first in range(0, num_to, BLOCK_S):
        gate_HS, live_HS, unit_SM, live_SM = _places(first, num_to, H, M, BLOCK_H, BLOCK_M, BLOCK_S)
        to_HS = tl.load(to_ptr + token * H * num_to + gate_HS, mask=live_HS, other=0.0).to(tl.float32)
        dout_SM = tl.load(dout_ptr + token * num_to * M + unit_SM, mask=live_SM, other=0.0).to(tl.float32)
        dhead_HM += tl.sum(to_HS[:, :, None] * dout_SM[None, :, :], axis=1)
        dto_HS = tl.sum(head_HM[:, None, :] * dout_SM[None, :, :], axis=2)
        tl.store(dto_ptr + token * H * num_to + gate_HS, dto_HS.to(dto_ptr.dtype.element_ty), mask=live_HS)
    for first in range(0, num_from, BLOCK_S):
        gate_HS, live_HS, unit_SM, live_SM = _places(first, num_from, H, M, BLOCK_H, BLOCK_M, BLOCK_S)
        from_HS = tl.load(from_ptr + token * H * num_from + gate_HS, mask=live_HS, other=0.0).to(tl.float32)
        hidden_SM = tl.load(hidden_ptr + token * num_from * M + unit_SM, mask=live_SM, other=0.0).to(tl.float32)
        dfrom_HS = tl.sum(hidden_SM[None, :, :] * dhead_HM[:, None, :], axis=2)
        dhidden_SM = tl.sum(from_HS[:, :, None] * dhead_HM[:, None, :], axis=0)
        tl.store(dfrom_ptr + token * H * num_from + gate_HS, dfrom_HS.to(dfrom_ptr.dtype.element_ty), mask=live_HS)
        tl.store(
            dhidden_ptr + token * num_from * M + unit_SM, dhidden_SM.to(dhidden_ptr.dtype.element_ty), mask=live_SM
        )
