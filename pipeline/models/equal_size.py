"""A dense model as large as another, so that what is compared differs in its layers and not in its size."""

import torch

from pipeline.models.dense import DenseSpec
from pipeline.models.language_model import LayersOf
from pipeline.models.monet import MonetSpec
from pipeline.models.transformer import TransformerShape


def dense_as_large_as(monet: MonetSpec, shape: TransformerShape) -> DenseSpec:
    """The MLP whose parameters, over all blocks, are as many as those of Monet's routers and experts, to one unit."""
    layers, d_model = LayersOf(monet), shape.d_model
    with torch.device("meta"):  # counted, never filled
        modules = [
            make(d_model, layer) for layer in range(shape.num_layers) for make in (layers.router, layers.experts)
        ]
    num_parameters = sum(p.numel() for module in modules if module is not None for p in module.parameters())
    # A block's MLP has d_hidden * (2 d_model + 1) weights and biases, and d_model biases of its output.
    d_hidden = round((num_parameters / shape.num_layers - d_model) / (2 * d_model + 1))
    return DenseSpec(d_hidden=d_hidden)
