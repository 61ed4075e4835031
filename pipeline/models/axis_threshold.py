"""The threshold on the logits of one axis, as Monet's routers and PEER's jumprelu gate have it (arXiv 2412.04139)."""

# N tokens, H heads, I sub-experts or sub-keys of an axis

import torch
from torch import Tensor, nn

from pipeline.models.number_types import at_least_float32


def passing_logits(logits_NHI: Tensor, norm: nn.Module, deviations: float, margin: float = 0.0) -> Tensor:
    """(N, H, I) logits, those below the axis threshold at minus infinity; the best one of a head always passes.

    In float32 whatever the model's dtype, or higher if it is. `norm` is a batch norm of the
    heads: one mean and variance each, over tokens and sub-experts. Those within `margin`, in their deviations, of the
    best pass like it.
    """
    logits_NHI = at_least_float32(logits_NHI)
    normal_NHI = norm(logits_NHI)
    limit_NH1 = (normal_NHI.amax(-1, keepdim=True) - margin).clamp(max=deviations)
    return logits_NHI.masked_fill(normal_NHI < limit_NH1, -torch.inf)


def axis_deviations(active: int, num_keys: int) -> float:
    """Standard deviations above the mean that a fraction active / num_keys of normal logits exceeds."""
    quantile = torch.tensor(1 - active / num_keys, dtype=torch.float64, device="cpu")
    return float(torch.special.ndtri(quantile))


def fit_norm(norm: nn.BatchNorm1d, values_NHX: Tensor) -> None:
    """Its mean and variance a head, anew from these values."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(values_NHX.mean((0, 2)))
    norm.running_var.copy_(values_NHX.var((0, 2)))
