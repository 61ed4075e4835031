"""Functions that pykan's library lacks, as entries for it: torch form, sympy form, complexity, form without poles.

This file is copied beside every expert that is written as a KAN, so it needs torch and sympy alone. `clip` is no
function of the catalogue: a spline's argument passes through it, since a KAN's spline fades to 0 outside its knots.
"""

from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.nn import functional as F

Entry = tuple[Callable[[Tensor], Tensor], Callable[[Any], Any], int, Callable[[Tensor, Any], tuple[tuple[()], Tensor]]]


def _entry(f: Callable[[Tensor], Tensor], symbol: Callable[[Any], Any], complexity: int) -> Entry:
    return f, symbol, complexity, lambda z, y_th: ((), f(z))


ENTRIES: dict[str, Entry] = {
    "relu": _entry(torch.relu, lambda z: sympy.Max(z, 0), 2),
    "relu2": _entry(lambda z: torch.relu(z).square(), lambda z: sympy.Max(z, 0) ** 2, 3),
    "gelu": _entry(F.gelu, lambda z: z * (1 + sympy.erf(z / sympy.sqrt(2))) / 2, 4),
    "silu": _entry(F.silu, lambda z: z / (1 + sympy.exp(-z)), 4),
    "sigmoid": _entry(torch.sigmoid, lambda z: 1 / (1 + sympy.exp(-z)), 4),
    "softplus": _entry(F.softplus, lambda z: sympy.log(1 + sympy.exp(z)), 4),
    "signed_root": _entry(
        lambda z: torch.sign(z) * torch.sqrt(torch.abs(z)), lambda z: sympy.sign(z) * sympy.sqrt(sympy.Abs(z)), 2
    ),
    "three_halves_power": _entry(
        lambda z: torch.abs(z) * torch.sqrt(torch.abs(z)), lambda z: sympy.Abs(z) ** sympy.Rational(3, 2), 4
    ),
    "clipped_exp": _entry(lambda z: torch.exp(z.clamp(max=10)), lambda z: sympy.exp(sympy.Min(z, 10)), 2),
    "signed_log": _entry(
        lambda z: torch.sign(z) * torch.log1p(torch.abs(z)), lambda z: sympy.sign(z) * sympy.log(1 + sympy.Abs(z)), 2
    ),
    "clip": _entry(lambda z: z.clamp(0, 1), lambda z: sympy.Min(sympy.Max(z, 0), 1), 2),
}

NAMES = {
    "identity": "x", "square": "x^2", "cube": "x^3", "fourth_power": "x^4", "fifth_power": "x^5",
}  # fmt: skip
"""What pykan calls functions of the catalogue that it has under another name."""
