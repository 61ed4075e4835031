"""monet_mix: carry hidden units from one axis of sub-experts to the other, head by head, without a (T, I, J) tensor.

In stock ops each product is a batch of small matrices in the layout in which its operands lie: einsum over the
published letters multiplies the same numbers, but in permuted layouts, and spends most of its time there.
"""

# T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert

import torch
from torch import Tensor

from kernels import backends
from kernels.backends import cuda_kernels
from kernels.errors import Mistake
from kernels.monet_mix import native


@torch.library.custom_op("legible::monet_mix", mutates_args=(), device_types="cpu")
def _mix(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> tuple[Tensor, Tensor]:
    _check(hidden_TIM, from_THI, to_THJ)
    library = backends.cpu_library()
    if library is not None and hidden_TIM.dtype == torch.float32:
        return native.forward(library, hidden_TIM, from_THI, to_THJ)
    head_THM = torch.bmm(from_THI, hidden_TIM)
    return torch.bmm(to_THJ.transpose(1, 2), head_THM), head_THM


@_mix.register_kernel("cuda")
def _(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> tuple[Tensor, Tensor]:
    _check(hidden_TIM, from_THI, to_THJ)
    return cuda_kernels("monet_mix").forward(hidden_TIM, from_THI, to_THJ)


@_mix.register_fake
def _(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, _, num_units = hidden_TIM.shape
    out_TJM = hidden_TIM.new_empty(num_tokens, to_THJ.shape[2], num_units)
    # The CUDA kernels keep the heads' sums as they accumulate them.
    dtype = torch.float32 if hidden_TIM.is_cuda else hidden_TIM.dtype
    return out_TJM, hidden_TIM.new_empty(num_tokens, to_THJ.shape[1], num_units, dtype=dtype)


@torch.library.custom_op("legible::monet_mix_backward", mutates_args=(), device_types="cpu")
def _mix_backward(
    dout_TJM: Tensor, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor, head_THM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    library = backends.cpu_library()
    if library is not None and hidden_TIM.dtype == torch.float32:
        return native.backward(library, dout_TJM, hidden_TIM, from_THI, to_THJ, head_THM)
    dhead_THM = torch.bmm(to_THJ, dout_TJM)
    dhidden_TIM = torch.bmm(from_THI.transpose(1, 2), dhead_THM)
    dfrom_THI = torch.bmm(dhead_THM, hidden_TIM.transpose(1, 2))
    dto_THJ = torch.bmm(head_THM, dout_TJM.transpose(1, 2))
    return dhidden_TIM, dfrom_THI, dto_THJ


@_mix_backward.register_kernel("cuda")
def _(
    dout_TJM: Tensor, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor, head_THM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return cuda_kernels("monet_mix").backward(dout_TJM, hidden_TIM, from_THI, to_THJ, head_THM)


@_mix_backward.register_fake
def _(
    dout_TJM: Tensor, hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor, head_THM: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return hidden_TIM.new_empty(hidden_TIM.shape), from_THI.new_empty(from_THI.shape), to_THJ.new_empty(to_THJ.shape)


def _save(ctx, inputs, output) -> None:  # noqa: ANN001 - torch's own protocol
    ctx.save_for_backward(*inputs, output[1])


def _gradients(ctx, dout_TJM: Tensor, _: Tensor):  # noqa: ANN001, ANN202 - torch's own protocol
    return _mix_backward(dout_TJM, *ctx.saved_tensors)


_mix.register_autograd(_gradients, setup_context=_save)


def _check(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> None:
    hidden, one, other = (tuple(tensor.shape) for tensor in (hidden_TIM, from_THI, to_THJ))
    if len(hidden) != 3:
        raise Mistake(f"monet_mix got hidden_TIM of shape {hidden}; it takes (tokens, sub-experts, units)")
    if len(one) != 3 or (one[0], one[2]) != hidden[:2]:
        raise Mistake(
            f"monet_mix got from_THI of shape {one} for hidden_TIM of shape {hidden}; "
            f"it takes ({hidden[0]}, heads, {hidden[1]})"
        )
    if len(other) != 3 or other[:2] != one[:2]:
        raise Mistake(
            f"monet_mix got to_THJ of shape {other} for from_THI of shape {one}; "
            f"it takes ({one[0]}, {one[1]}, sub-experts)"
        )
    if not hidden_TIM.is_floating_point():
        raise Mistake(f"monet_mix got hidden_TIM of {hidden_TIM.dtype}; it takes floating ones, convert them")
    for name, gate in (("from_THI", from_THI), ("to_THJ", to_THJ)):
        if gate.dtype != hidden_TIM.dtype:
            raise Mistake(
                f"monet_mix got {name} of {gate.dtype} and hidden_TIM of {hidden_TIM.dtype}; convert one to the other's"
            )


def monet_mix(hidden_TIM: Tensor, from_THI: Tensor, to_THJ: Tensor) -> Tensor:
    """(T, J, M): sum over h, i of to_hj * from_hi * hidden_im (Monet, arXiv 2412.04139, eq. 9 and 11).

    All of one floating dtype, which is the output's. Differentiable in all three, once. ValueError names the argument
    whose shape or dtype does not fit.
    """
    return _mix(hidden_TIM, from_THI, to_THJ)[0]
