"""The KAN edge of every expert at once: cubic splines by least squares on pykan's basis, then snapping to functions."""

# S samples an expert, E experts, F functions, G knots, K = G - 1 + 3 spline coefficients

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.symbol_table.functions import KNOTS, evaluate_splines
from pipeline.symbolic.formulas._pykan import spline_basis
from pipeline.symbolic.formulas.functions import CATALOGUE

SLACK = 1.05
"""How much larger a simpler function's error may be than the least."""
ROUNDING = 1e-6
"""Share of the variance below which errors are rounding, and all alike."""


@dataclass(frozen=True, slots=True)
class Splines:
    low_E: Tensor
    high_E: Tensor
    coefficient_EK: Tensor


def fit_splines(z_ES: Tensor, y_ES: Tensor, weight_ES: Tensor) -> Splines:
    """Weighted least squares of y on a cubic spline of z, all experts in one solve. Weight 0 leaves a sample out."""
    used_ES = weight_ES > 0
    low_E = z_ES.masked_fill(~used_ES, torch.inf).amin(1)
    high_E = z_ES.masked_fill(~used_ES, -torch.inf).amax(1)
    empty_E = ~used_ES.any(1)
    low_E, high_E = low_E.masked_fill(empty_E, 0.0), high_E.masked_fill(empty_E, 1.0)
    high_E = torch.maximum(high_E, low_E + 1e-3)
    basis_ESK = _basis(z_ES, low_E, high_E)
    weighted_ESK = basis_ESK * weight_ES[..., None]
    gram_EKK = weighted_ESK.transpose(1, 2) @ basis_ESK
    ridge_E = 1e-4 * gram_EKK.diagonal(dim1=1, dim2=2).mean(1) + 1e-12
    gram_EKK = gram_EKK + torch.eye(gram_EKK.shape[1]) * ridge_E[:, None, None]
    right_EK = (weighted_ESK * y_ES[..., None]).sum(1)
    return Splines(low_E, high_E, torch.linalg.solve(gram_EKK, right_EK))


def _basis(z_ES: Tensor, low_E: Tensor, high_E: Tensor) -> Tensor:
    knots_EG = low_E[:, None] + (high_E - low_E)[:, None] * torch.linspace(0, 1, KNOTS)
    clamped_ES = z_ES.clamp(low_E[:, None], (high_E - 1e-6 * (high_E - low_E))[:, None])
    return spline_basis(clamped_ES.T.contiguous(), knots_EG).transpose(0, 1)


def evaluate_pairs(splines: Splines, row_P: Tensor, z_P: Tensor) -> Tensor:
    """(P): spline `row_P` at `z_P`, constant outside its range."""
    return evaluate_splines(splines.low_E, splines.high_E, splines.coefficient_EK, row_P, z_P)


@dataclass(frozen=True, slots=True)
class Snapped:
    """For every expert the catalogue function that its samples are written with: scale * f(z) + offset."""

    code_E: Tensor
    scale_E: Tensor
    offset_E: Tensor
    error_E: Tensor
    """Weighted squared error left."""


def snap(z_ES: Tensor, y_ES: Tensor, weight_ES: Tensor, known_code: int) -> Snapped:
    """Tries every catalogue function with its best scale and offset, in closed form, for all experts at once.

    Many functions are alike on a short range, so the closest one may have won by noise. Of those whose error is within
    SLACK of the least the simplest is taken: the known activation first, then by complexity, then by error.
    """
    z_ES = z_ES.masked_fill(weight_ES <= 0, 0.0)  # powers of what is not fitted must not overflow
    total_E = weight_ES.sum(1).clamp(min=1e-12)
    y_mean_E = (weight_ES * y_ES).sum(1) / total_E
    y_centred_ES = y_ES - y_mean_E[:, None]
    found = []
    for function in CATALOGUE:
        f_ES = function.f(z_ES)
        f_mean_E = (weight_ES * f_ES).sum(1) / total_E
        f_centred_ES = f_ES - f_mean_E[:, None]
        weighted_ES = weight_ES * f_centred_ES
        variance_E = (weighted_ES * f_centred_ES).sum(1)
        slope_E = (weighted_ES * y_centred_ES).sum(1) / (variance_E + 1e-9 * total_E)
        error_E = (weight_ES * (y_centred_ES - slope_E[:, None] * f_centred_ES).square()).sum(1)
        found.append((slope_E, y_mean_E - slope_E * f_mean_E, error_E))
    scale_FE, offset_FE, error_FE = (torch.stack(column) for column in zip(*found, strict=True))
    variance_E = (weight_ES * y_centred_ES.square()).sum(1)
    limit_E = SLACK * error_FE.amin(0) + ROUNDING * variance_E + 1e-30
    complexity_F = torch.tensor([float(function.complexity) for function in CATALOGUE])
    complexity_F[known_code] = -1.0
    rank_FE = complexity_F[:, None] + 0.5 * error_FE / limit_E
    code_E = rank_FE.masked_fill(error_FE > limit_E, torch.inf).argmin(0)
    pick = code_E[None]
    return Snapped(code_E.to(torch.uint8), *(table.gather(0, pick)[0] for table in (scale_FE, offset_FE, error_FE)))
