"""The scalar functions that a symbol table names by code. A code, once given, keeps its meaning."""

# P pairs of a token and an expert, W splines, K coefficients of one

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.errors import Mistake

EXP_END = 10.0
"""Where clipped_exp becomes constant; float32 overflows at 88."""
FUNCTIONS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("constant", torch.ones_like),
    ("identity", lambda z: z),
    ("square", torch.square),
    ("relu", torch.relu),
    ("relu2", lambda z: torch.relu(z).square()),
    ("gelu", F.gelu),
    ("silu", F.silu),
    ("sigmoid", torch.sigmoid),
    ("tanh", torch.tanh),
    ("softplus", F.softplus),
    ("abs", torch.abs),
    ("gaussian", lambda z: torch.exp(-z.square())),
    ("cube", lambda z: z * z * z),
    ("fourth_power", lambda z: z.square().square()),
    ("fifth_power", lambda z: z.square().square() * z),
    ("signed_root", lambda z: torch.sign(z) * torch.sqrt(torch.abs(z))),
    ("three_halves_power", lambda z: torch.abs(z) * torch.sqrt(torch.abs(z))),
    ("clipped_exp", lambda z: torch.exp(z.clamp(max=EXP_END))),
    ("signed_log", lambda z: torch.sign(z) * torch.log1p(torch.abs(z))),
    ("sin", torch.sin),
    ("cos", torch.cos),
    ("arctan", torch.arctan),
)
"""Name and function of the codes 0, 1, 2..."""
SPLINE_CODE = 255
"""A cubic B-spline of the formula's argument, its coefficients in the layer's spline tables."""
KNOTS = 9
"""Of a spline, evenly spaced from its low to its high end."""


def apply_codes(code_P: Tensor, z_P: Tensor) -> Tensor:
    """(P): each pair's function of its argument. ValueError for a code outside the catalogue."""
    out_P = torch.empty_like(z_P)
    for code in torch.unique(code_P).tolist():
        if code >= len(FUNCTIONS):
            raise Mistake(f"function code {code} is not in the catalogue (0 to {len(FUNCTIONS) - 1})")
        chosen_P = code_P == code
        out_P[chosen_P] = FUNCTIONS[code][1](z_P[chosen_P])
    return out_P


def evaluate_splines(low_W: Tensor, high_W: Tensor, coefficient_WK: Tensor, row_P: Tensor, z_P: Tensor) -> Tensor:
    """(P): spline `row_P` at `z_P`, constant outside its range. Uniform cubic B-splines by their four local weights."""
    low_P, high_P = low_W[row_P], high_W[row_P]
    position_P = ((z_P - low_P) / (high_P - low_P)).clamp(0.0, 1.0) * (KNOTS - 1)
    cell_P = position_P.floor().clamp(max=KNOTS - 2)
    t_P = position_P - cell_P
    weights = (
        (1 - t_P) ** 3 / 6,
        (3 * t_P**3 - 6 * t_P**2 + 4) / 6,
        (-3 * t_P**3 + 3 * t_P**2 + 3 * t_P + 1) / 6,
        t_P**3 / 6,
    )
    first_P = cell_P.nan_to_num().long()  # of what has overflowed the weights are nan, and so is the sum
    terms = [weight * coefficient_WK[row_P, first_P + i] for i, weight in enumerate(weights)]
    return torch.stack(terms).sum(0)
