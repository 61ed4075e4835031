"""The one catalogue of scalar functions that a formula may use, each with its sympy form and its cost in bits.

Artifacts store codes, never text that is evaluated. A code, once given, keeps its meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one variable; a formula uses it as scale * f(z) + offset."""

    code: int
    name: str
    f: Callable[[Tensor], Tensor]
    symbol: Callable[[sympy.Expr], sympy.Expr]


def _relu(z: sympy.Expr) -> sympy.Expr:
    return sympy.Max(z, 0)


CATALOGUE: tuple[Function, ...] = (
    Function(0, "constant", torch.ones_like, lambda z: sympy.Integer(1)),
    Function(1, "identity", lambda z: z, lambda z: z),
    Function(2, "square", torch.square, lambda z: z**2),
    Function(3, "relu", torch.relu, _relu),
    Function(4, "relu2", lambda z: torch.relu(z).square(), lambda z: _relu(z) ** 2),
    Function(5, "gelu", F.gelu, lambda z: z * (1 + sympy.erf(z / sympy.sqrt(2))) / 2),
    Function(6, "silu", F.silu, lambda z: z / (1 + sympy.exp(-z))),
    Function(7, "sigmoid", torch.sigmoid, lambda z: 1 / (1 + sympy.exp(-z))),
    Function(8, "tanh", torch.tanh, sympy.tanh),
    Function(9, "softplus", F.softplus, lambda z: sympy.log(1 + sympy.exp(z))),
    Function(10, "abs", torch.abs, sympy.Abs),
    Function(11, "gaussian", lambda z: torch.exp(-z.square()), lambda z: sympy.exp(-(z**2))),
)
BY_CODE = {function.code: function for function in CATALOGUE}
BY_NAME = {function.name: function for function in CATALOGUE}
SPLINE_CODE = 255
"""A cubic B-spline of the formula's argument, its coefficients in the layer's spline tables."""


def apply_codes(code_P: Tensor, z_P: Tensor) -> Tensor:
    """(P): each pair's function of its argument. ValueError for a code outside the catalogue."""
    out_P = torch.empty_like(z_P)
    for code in torch.unique(code_P).tolist():
        if code not in BY_CODE:
            raise ValueError(f"function code {code} is not in the catalogue (0 to {max(BY_CODE)})")
        chosen_P = code_P == code
        out_P[chosen_P] = BY_CODE[code].f(z_P[chosen_P])
    return out_P
