"""The one catalogue of scalar functions that a formula may use, each with its sympy form and its cost in bits.

Artifacts store codes, never text that is evaluated. What executes a code is kernels/symbol_table/functions.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import sympy
from torch import Tensor

from kernels.symbol_table.functions import FUNCTIONS
from kernels.symbol_table.functions import SPLINE_CODE as SPLINE_CODE
from kernels.symbol_table.functions import apply_codes as apply_codes


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one variable; a formula uses it as scale * f(z) + offset."""

    code: int
    name: str
    f: Callable[[Tensor], Tensor]
    symbol: Callable[[sympy.Expr], sympy.Expr]


def _relu(z: sympy.Expr) -> sympy.Expr:
    return sympy.Max(z, 0)


_SYMBOLS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    "constant": lambda z: sympy.Integer(1),
    "identity": lambda z: z,
    "square": lambda z: z**2,
    "relu": _relu,
    "relu2": lambda z: _relu(z) ** 2,
    "gelu": lambda z: z * (1 + sympy.erf(z / sympy.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + sympy.exp(-z)),
    "sigmoid": lambda z: 1 / (1 + sympy.exp(-z)),
    "tanh": sympy.tanh,
    "softplus": lambda z: sympy.log(1 + sympy.exp(z)),
    "abs": sympy.Abs,
    "gaussian": lambda z: sympy.exp(-(z**2)),
}
CATALOGUE = tuple(Function(code, name, f, _SYMBOLS[name]) for code, (name, f) in enumerate(FUNCTIONS))
BY_CODE = {function.code: function for function in CATALOGUE}
BY_NAME = {function.name: function for function in CATALOGUE}
