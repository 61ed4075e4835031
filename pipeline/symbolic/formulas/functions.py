"""The one catalogue of scalar functions that a formula may use, each with its sympy form and its complexity.

Artifacts store codes, never text that is evaluated. What executes a code is kernels/symbol_table/functions.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import sympy
from torch import Tensor

from kernels.symbol_table.functions import EXP_END, FUNCTIONS
from kernels.symbol_table.functions import SPLINE_CODE as SPLINE_CODE
from kernels.symbol_table.functions import apply_codes as apply_codes


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one variable; a formula uses it as scale * f(z) + offset."""

    code: int
    name: str
    f: Callable[[Tensor], Tensor]
    symbol: Callable[[sympy.Expr], sympy.Expr]
    complexity: int
    """Of two functions that fit alike the one with less is taken; pykan's numbers where it has the function."""


def _relu(z: sympy.Expr) -> sympy.Expr:
    return sympy.Max(z, 0)


_SYMBOLS: dict[str, tuple[int, Callable[[sympy.Expr], sympy.Expr]]] = {
    "constant": (0, lambda z: sympy.Integer(1)),
    "identity": (1, lambda z: z),
    "square": (2, lambda z: z**2),
    "relu": (2, _relu),
    "relu2": (3, lambda z: _relu(z) ** 2),
    "gelu": (4, lambda z: z * (1 + sympy.erf(z / sympy.sqrt(2))) / 2),
    "silu": (4, lambda z: z / (1 + sympy.exp(-z))),
    "sigmoid": (4, lambda z: 1 / (1 + sympy.exp(-z))),
    "tanh": (3, sympy.tanh),
    "softplus": (4, lambda z: sympy.log(1 + sympy.exp(z))),
    "abs": (3, sympy.Abs),
    "gaussian": (3, lambda z: sympy.exp(-(z**2))),
    "cube": (3, lambda z: z**3),
    "fourth_power": (3, lambda z: z**4),
    "fifth_power": (3, lambda z: z**5),
    "signed_root": (2, lambda z: sympy.sign(z) * sympy.sqrt(sympy.Abs(z))),
    "three_halves_power": (4, lambda z: sympy.Abs(z) ** sympy.Rational(3, 2)),
    "clipped_exp": (2, lambda z: sympy.exp(sympy.Min(z, int(EXP_END)))),
    "signed_log": (2, lambda z: sympy.sign(z) * sympy.log(1 + sympy.Abs(z))),
    "sin": (2, sympy.sin),
    "cos": (2, sympy.cos),
    "arctan": (4, sympy.atan),
}
CATALOGUE = tuple(
    Function(code, name, f, symbol=_SYMBOLS[name][1], complexity=_SYMBOLS[name][0])
    for code, (name, f) in enumerate(FUNCTIONS)
)
BY_CODE = {function.code: function for function in CATALOGUE}
