"""Where tests run the Triton kernels: on the CPU in Triton's interpreter, or on a GPU if TRITON_INTERPRET is not 1."""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


def fill_new_tensors_with_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes torch.empty and empty_like return NaN, or the lowest integer, so that what a kernel leaves out is seen."""
    empty, empty_like = torch.empty, torch.empty_like

    def filled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: filled(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: filled(empty_like(*a, **k)))
