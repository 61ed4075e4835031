"""The activations an expert may have, each with its derivative: kernels write their own backward passes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.errors import Mistake


@dataclass(frozen=True, slots=True)
class Activation:
    f: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]


def _relu2(x: Tensor) -> Tensor:
    positive = torch.relu(x)
    return positive * positive  # square() would take pow in its backward pass, three times as slow


def _relu2_derivative(x: Tensor) -> Tensor:
    return 2 * torch.relu(x)


def _relu_derivative(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _gelu_derivative(x: Tensor) -> Tensor:
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return cdf + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _silu_derivative(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


ACTIVATIONS: dict[str, Activation] = {
    "relu2": Activation(_relu2, _relu2_derivative),
    "relu": Activation(torch.relu, _relu_derivative),
    "gelu": Activation(F.gelu, _gelu_derivative),
    "silu": Activation(F.silu, _silu_derivative),
}


def activation(name: str) -> Activation:
    """The activation of that name; ValueError names the known ones."""
    if name not in ACTIVATIONS:
        raise Mistake(f"activation {name!r} is unknown; use one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]
