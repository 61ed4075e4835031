"""A model with other expert layers for a while."""

from collections.abc import Iterator, Mapping
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
def swapped(model: Transformer, experts: Mapping[int, nn.Module]) -> Iterator[None]:
    """Within it, these blocks of the model have these expert layers."""
    blocks = model.blocks()
    before = {layer: blocks[layer].moe for layer in experts}
    try:
        for layer, other in experts.items():
            blocks[layer].moe = other
        yield
    finally:
        for layer, own in before.items():
            blocks[layer].moe = own


@contextmanager
def experts_zeroed(model: Transformer) -> Iterator[None]:
    """Within it, every expert layer of the model adds nothing to the residual stream."""
    with swapped(model, {layer: Nothing() for layer in range(len(model.blocks()))}):
        yield
