"""How strongly an expert speaks, from its tables: as numbers, and as an expression.

Expressions are built from the tables, number by number; no text of an artifact is evaluated.
"""

# N tokens, D model width

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.formulas.functions import BY_CODE, SPLINE_CODE
from pipeline.symbolic.formulas.spline import KNOTS, Splines, evaluate_pairs
from pipeline.symbolic.tiers import Tier

DIGITS = 3
"""Significant digits of a number that is shown."""
Z = sympy.Symbol("z", real=True)
"""The argument of an expert's function."""


def coefficients(experts: SymbolExperts, expert: int) -> dict[int, float]:
    """What multiplies each coordinate in the expert's argument, in order of their indices."""
    if experts.tier_E[expert] == Tier.T0:
        u_D = experts.dense_u_FD[int(experts.dense_row_E[expert])]
        return {index: float(value) for index, value in enumerate(u_D) if value != 0}
    found: dict[int, float] = {}
    for index, value in zip(experts.index_EK[expert].tolist(), experts.coefficient_EK[expert].tolist(), strict=True):
        if value != 0:
            found[index] = found.get(index, 0.0) + value
    return dict(sorted(found.items()))


def coordinates_by_size(experts: SymbolExperts, expert: int) -> list[int]:
    """The coordinates that the expert's argument names, those with the largest coefficients first."""
    found = coefficients(experts, expert)
    return sorted(found, key=lambda index: -abs(found[index]))


def arguments(experts: SymbolExperts, expert: int, x_ND: Tensor) -> Tensor:
    """(N) z of the expert on these states."""
    found = coefficients(experts, expert)
    weight_K = torch.tensor(list(found.values()))
    return x_ND[:, list(found)] @ weight_K + experts.intercept_E[expert]


def function_values(experts: SymbolExperts, expert: int, z_N: Tensor) -> Tensor:
    """(N) the magnitude of the expert at these arguments, straight from its tables."""
    code = int(experts.code_E[expert])
    if code == SPLINE_CODE:
        splines = Splines(experts.spline_low_W, experts.spline_high_W, experts.spline_coefficient_WK)
        value_N = evaluate_pairs(splines, experts.spline_row_E[expert].long().expand(len(z_N)), z_N)
    else:
        value_N = BY_CODE[code].f(z_N)
    return experts.scale_E[expert] * value_N + experts.offset_E[expert]


def magnitude_expression(experts: SymbolExperts, expert: int, *, digits: int | None = DIGITS) -> sympy.Expr:
    """scale * f(z) + offset in x_0, x_1..., rounded to that many significant digits; None rounds nothing."""
    return function_expression(experts, expert, argument_expression(experts, expert, digits), digits)


def number(value: float, digits: int | None) -> sympy.Float:
    """The float, or its `digits` first digits."""
    return sympy.Float(value) if digits is None else sympy.Float(float(f"{value:.{digits}g}"), digits)


def argument_expression(experts: SymbolExperts, expert: int, digits: int | None) -> sympy.Expr:
    """z in coordinates x_0, x_1..."""
    terms = [
        number(value, digits) * sympy.Symbol(f"x_{index}", real=True)
        for index, value in coefficients(experts, expert).items()
    ]
    intercept = float(experts.intercept_E[expert])
    return sympy.Add(*terms, *([number(intercept, digits)] if intercept or not terms else []))


def function_expression(experts: SymbolExperts, expert: int, z: sympy.Expr, digits: int | None) -> sympy.Expr:
    """scale * f(z) + offset."""
    code = int(experts.code_E[expert])
    value = _spline(experts, expert, z, digits) if code == SPLINE_CODE else BY_CODE[code].symbol(z)
    scale, offset = float(experts.scale_E[expert]), float(experts.offset_E[expert])
    scaled = value if scale == 1 else number(scale, digits) * value
    return scaled + number(offset, digits) if offset else scaled


def _spline(experts: SymbolExperts, expert: int, z: sympy.Expr, digits: int | None) -> sympy.Expr:
    """The cubic of every interval between knots, about its left knot; constant outside the outermost."""
    row = int(experts.spline_row_E[expert])
    low, high = float(experts.spline_low_W[row]), float(experts.spline_high_W[row])
    coefficients = experts.spline_coefficient_WK[row].tolist()
    step = (high - low) / (KNOTS - 1)
    pieces: list[tuple[sympy.Expr, Boolean]] = []
    for cell in range(KNOTS - 1):
        a, b, c, d = coefficients[cell : cell + 4]
        # Of the uniform cubic B-spline's four weights, by powers of the distance to the knot in steps.
        powers = ((a + 4 * b + c) / 6, (c - a) / 2, (a - 2 * b + c) / 2, (d - a + 3 * (b - c)) / 6)
        if cell == 0:
            pieces.append((number(powers[0], digits), z < number(low, digits)))
        left = number(low + cell * step, digits)
        terms = [number(power / step**n, digits) * (z - left) ** n for n, power in enumerate(powers)]
        pieces.append((sympy.Add(*terms), z < number(low + (cell + 1) * step, digits)))
    b, c, d = coefficients[-3:]
    pieces.append((number((b + 4 * c + d) / 6, digits), sympy.true))
    return sympy.Piecewise(*pieces)
