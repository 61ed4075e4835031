"""The KAN edge of every expert at once: cubic splines by least squares on pykan's basis, then snapping to functions."""

# S samples an expert, E experts, G knots, K = G - 1 + 3 spline coefficients

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.symbol_table.functions import KNOTS, evaluate_splines
from pipeline.symbolic._pykan import spline_basis
from pipeline.symbolic.functions import CATALOGUE


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
    """For every expert the catalogue function closest to the samples: scale * f(z) + offset."""

    code_E: Tensor
    scale_E: Tensor
    offset_E: Tensor
    error_E: Tensor
    """Weighted squared error left."""


def snap(z_ES: Tensor, y_ES: Tensor, weight_ES: Tensor) -> Snapped:
    """Tries every catalogue function with its best scale and offset, in closed form, for all experts at once."""
    best: Snapped | None = None
    total_E = weight_ES.sum(1).clamp(min=1e-12)
    y_mean_E = (weight_ES * y_ES).sum(1) / total_E
    y_centred_ES = y_ES - y_mean_E[:, None]
    for function in CATALOGUE:
        f_ES = function.f(z_ES)
        f_mean_E = (weight_ES * f_ES).sum(1) / total_E
        f_centred_ES = f_ES - f_mean_E[:, None]
        variance_E = (weight_ES * f_centred_ES.square()).sum(1)
        slope_E = (weight_ES * f_centred_ES * y_centred_ES).sum(1) / (variance_E + 1e-9 * total_E)
        error_E = (weight_ES * (y_centred_ES - slope_E[:, None] * f_centred_ES).square()).sum(1)
        offset_E = y_mean_E - slope_E * f_mean_E
        code_E = torch.full_like(error_E, function.code, dtype=torch.uint8)
        candidate = Snapped(code_E, slope_E, offset_E, error_E)
        best = candidate if best is None else _better(candidate, best)
    assert best is not None
    return best


def _better(new: Snapped, old: Snapped) -> Snapped:
    wins_E = new.error_E < 0.999 * old.error_E
    pick = [torch.where(wins_E, a, b) for a, b in zip(_fields(new), _fields(old), strict=True)]
    return Snapped(*pick)


def _fields(s: Snapped) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return s.code_E, s.scale_E, s.offset_E, s.error_E
