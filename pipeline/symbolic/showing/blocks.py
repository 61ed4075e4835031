"""The symbolic experts of a block, and the router that they obey."""

from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolExperts, SymbolRouter


def symbol_experts(model: LanguageModel, layer: int) -> SymbolExperts:
    """The symbolic experts of a block; ValueError that gives the range for a layer that is not there."""
    blocks = model.blocks()
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer {layer} is not in this model, which has the layers 0 to {len(blocks) - 1}")
    if model.kind != "symbols":
        raise ValueError(f"a {model.kind!r} has no symbols to read; a 'symbols' was needed here")
    return model.expert_layers_of(SymbolExperts)[layer]


def router_block(model: LanguageModel, layer: int) -> int:
    """The block whose router this one obeys: its own, or the nearest below."""
    blocks = model.blocks()
    return next(below for below in range(layer, -1, -1) if blocks[below].router is not None)


def router_scores(model: LanguageModel, layer: int) -> PeerRouter:
    """The router that this block obeys."""
    return model.routers_of(SymbolRouter)[router_block(model, layer)].scores
