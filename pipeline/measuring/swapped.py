"""A model with other expert layers for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.transformer import Transformer

# N tokens, D model width


class Nothing(nn.Module):
    """Experts that add nothing to the residual stream, at no cost."""

    def forward(self, x_ND: Tensor, routing: Any) -> Tensor:
        return torch.zeros_like(x_ND)


@contextmanager
def experts_zeroed(model: Transformer) -> Iterator[None]:
    """Within it, every expert layer of the model adds nothing to the residual stream."""
    experts = [block.moe for block in model.blocks()]
    try:
        for block in model.blocks():
            block.moe = Nothing()
        yield
    finally:
        for block, moe in zip(model.blocks(), experts, strict=True):
            block.moe = moe
