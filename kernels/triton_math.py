"""What the Triton kernels share: how they are launched, the activations with their derivatives, and int4 to floats."""

# Values are float32 wherever arithmetic is done: Triton's interpreter adds bfloat16 as if it were integers.

from typing import Any

import torch
import triton
import triton.language as tl


def launch(kernel: Any, num_programs: int, *arguments: object, **constants: object) -> None:
    """Runs the kernel on the device of its first argument, a tensor, which need not be the current one."""
    with torch.cuda.device_of(arguments[0]):
        kernel[(num_programs,)](*arguments, **constants)


def power_of_two(size: int) -> int:
    """The least power of two that holds this many: Triton's blocks have no other sizes."""
    return 1 << (size - 1).bit_length()


@triton.jit
def activate(x, ACT: tl.constexpr):
    """The activation `ACT` of kernels/activations.py, of float32 values."""
    if ACT == "relu2":
        positive = tl.maximum(x, 0.0)
        return positive * positive
    elif ACT == "relu":
        return tl.maximum(x, 0.0)
    elif ACT == "silu":
        return x * tl.sigmoid(x)
    else:
        tl.static_assert(ACT == "gelu", "unknown activation")
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def activate_derivative(x, ACT: tl.constexpr):
    """The derivative of `activate`."""
    if ACT == "relu2":
        return 2.0 * tl.maximum(x, 0.0)
    elif ACT == "relu":
        return tl.where(x > 0.0, 1.0, 0.0)
    elif ACT == "silu":
        s = tl.sigmoid(x)
        return s * (1.0 + x * (1.0 - s))
    else:
        tl.static_assert(ACT == "gelu", "unknown activation")
        cdf = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return cdf + 0.3989422804014327 * x * tl.exp(-0.5 * x * x)


@triton.jit
def nibble(offset_word, S: tl.constexpr):
    """Nibble S of int32 words whose nibbles carry an offset of 8 (a word xor 0x88888888), as float32 in [-8, 7].

    The bits of an integer below 2**23 under the exponent of 2**23 are the float 2**23 + integer: no conversion
    instruction, which is issued at a fraction of the rate of others.
    """
    bits = ((offset_word >> (4 * S)) & 15) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - 8388616.0
