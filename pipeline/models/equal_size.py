"""A dense model as large as another, so that what is compared differs in its layers and not in its size."""

from pipeline.models.dense import DenseSpec
from pipeline.models.monet import MonetSpec
from pipeline.models.transformer import TransformerShape


def dense_as_large_as(monet: MonetSpec, shape: TransformerShape) -> DenseSpec:
    """The MLP whose parameters, over all blocks, are as many as those of Monet's routers and experts, to one unit."""
    width, units = shape.d_model, monet.num_sub_experts * monet.d_expert
    routers = -(-shape.num_layers // monet.router_group)
    of_a_router = 2 * width * monet.num_heads * monet.num_sub_experts
    of_experts = 2 * width * units + units + width * monet.num_sub_experts
    # A block's MLP has d_hidden * (2 width + 1) weights and biases, and `width` biases of its output.
    a_block = of_experts + routers * of_a_router / shape.num_layers
    return DenseSpec(d_hidden=round((a_block - width) / (2 * width + 1)))
