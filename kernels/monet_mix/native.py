"""monet_mix by the C++ library (native.cpp), in float32."""

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer


def forward(library: CpuLibrary, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> tuple[Tensor, Tensor]:
    """(T, J, M) output and (T, H, M) units by head, which the backward pass reads."""
    inputs = [tensor.contiguous() for tensor in (hidden_TIM, from_THI, to_THJ)]
    num_tokens, num_units = hidden_TIM.shape[0], hidden_TIM.shape[2]
    out_TJM = torch.empty(num_tokens, to_THJ.shape[2], num_units)
    head_THM = torch.empty(num_tokens, to_THJ.shape[1], num_units)
    sizes = _sizes(hidden_TIM, to_THJ)
    library.functions.monet_mix(*map(pointer, inputs), *sizes, *_how(library), pointer(out_TJM), pointer(head_THM))
    return out_TJM, head_THM


def backward(
    library: CpuLibrary, dout_TJM: Tensor, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor, head_THM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of hidden, from and to."""
    inputs = [tensor.contiguous() for tensor in (dout_TJM, hidden_TIM, from_THI, to_THJ, head_THM)]
    dhidden_TIM, dfrom_THI, dto_THJ = (torch.empty(t.shape) for t in (hidden_TIM, from_THI, to_THJ))
    gradients = map(pointer, (dhidden_TIM, dfrom_THI, dto_THJ))
    library.functions.monet_mix_backward(*map(pointer, inputs), *_sizes(hidden_TIM, to_THJ), *_how(library), *gradients)
    return dhidden_TIM, dfrom_THI, dto_THJ


def _sizes(hidden_TIM: Tensor, to_THJ: Tensor) -> list[ctypes.c_int64]:
    (num_tokens, num_from, num_units), (_, num_heads, num_to) = hidden_TIM.shape, to_THJ.shape
    return [ctypes.c_int64(size) for size in (num_tokens, num_heads, num_from, num_to, num_units)]


def _how(library: CpuLibrary) -> tuple[ctypes.c_int32, ctypes.c_int32]:
    return library.code, ctypes.c_int32(torch.get_num_threads())
