"""The one table of tolerances, as shares of the wanted tensor's root mean square."""

import torch
from torch import Tensor

RELATIVE_RMS = {
    torch.float32: 2e-6,  # ten-odd roundings of 6e-8, in another order
    torch.float64: 1e-14,
}


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """RMS of the difference over RMS of what was wanted; the RMS itself where nothing but zeros was wanted."""
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    if not wanted.numel():
        return 0.0
    error, size = ((t.double().square().mean().sqrt().item()) for t in (got - wanted, wanted))
    return error / size if size else error


def assert_close(got: Tensor, wanted: Tensor, limit: float | None = None) -> None:
    """Fails for NaN too."""
    share = relative_rms(got.detach(), wanted.detach())
    allowed = RELATIVE_RMS[wanted.dtype] if limit is None else limit
    assert share <= allowed, f"relative RMS {share:.3g} is above {allowed:.3g}"
