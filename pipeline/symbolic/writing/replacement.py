"""Symbols put into a model in the place of its experts: one block alone, to see what it loses, then all blocks."""

# N tokens, D model width, B sequences, T tokens a sequence, O token positions looked back

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.measuring.held_out import HeldOut
from pipeline.measuring.loss import token_losses
from pipeline.measuring.swapped import Nothing, swapped
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolExperts, SymbolRouter, SymbolRouting, SymbolSpec
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.symbolic.writing.assembly import BlockSymbols, FittedBlock

TIGHTENINGS = 4
BLOCK_CHECK_TOKENS = 8192
"""Validation tokens that a block replaced alone is measured on."""


def shortest(
    fitted: FittedBlock,
    held_out: HeldOut,
    *,
    lost: float,
    least_recovered: float,
    places: int,
) -> BlockSymbols:
    """The shortest description that gets at most the share `lost` of the experts' variance wrong.

    While the block, replaced alone, recovers less of the validation loss than `least_recovered`, that share shrinks
    with it. Only the validation split of `held_out` is read: what is reported has no part in the choice.
    """
    tightenings = 0
    while True:
        symbols = fitted.symbols(lost)
        recovered = _recovered_alone(fitted.model, fitted.layer, symbols, held_out, places)
        if recovered >= least_recovered or tightenings == TIGHTENINGS:
            return replace(symbols, recovered=recovered, lost=lost)
        # What is lost grows about as the error that is allowed.
        lost *= 0.95 * (1 - least_recovered) / (1 - recovered)
        tightenings += 1


def symbol_model(
    model: LanguageModel, blocks: Sequence[BlockSymbols], *, vocab_size: int, places: int
) -> LanguageModel:
    """The model with every expert replaced by its symbols."""
    spec = _spec(model, blocks, vocab_size, places)
    made = LanguageModel(ModelSpec(transformer=model.spec.transformer, experts=spec))
    made.load_state_dict(model.backbone_state(), strict=False)
    routers = model.routers_of(PeerRouter)
    for layer, router in made.routers_of(SymbolRouter).items():
        router.scores.load_state_dict(routers[layer].state_dict())
    for layer, experts in enumerate(made.expert_layers()):
        experts.load_state_dict(_symbol_experts(model, layer, blocks[layer], spec, layer).state_dict())
    return made.eval()


def _symbol_experts(
    model: LanguageModel, layer: int, symbols: BlockSymbols, spec: SymbolSpec, at: int
) -> SymbolExperts:
    """The module of block `layer`; `at` is its place in the spec's per-block sizes."""
    theirs = model.expert_layers_of(TableExperts)[layer]
    v = theirs.tables_of(Int4Table)["v"]
    ours = SymbolExperts(spec, model.shape.d_model, at)
    state = dict(symbols.tables)
    state["index.offset_C1"], state["index.block_start_K"] = theirs.index.stored
    state["v.weight_EB"], state["v.scale_E"] = v.weight_EB, v.scale_E
    if theirs.axis_bias is not None:
        state["axis_bias.row"], state["axis_bias.column"] = theirs.axis_bias.row, theirs.axis_bias.column
    ours.load_state_dict(state)
    ours.check(f"block {layer}")
    return ours.eval()


def _spec(model: LanguageModel, blocks: Sequence[BlockSymbols], vocab_size: int, places: int) -> SymbolSpec:
    peer = model.spec.experts_as(PeerSpec)
    return SymbolSpec(
        peer=peer,
        vocab_size=vocab_size,
        coordinates=max(block.coordinates for block in blocks),
        places=places,
        num_dense=tuple(block.num_dense for block in blocks),
        num_literals=tuple(block.num_literals for block in blocks),
        num_gates=tuple(block.num_gates for block in blocks),
        num_splines=tuple(block.num_splines for block in blocks),
    )


class _Reading(nn.Module):
    """A symbolic block inside a PEER model, whose routings do not carry the tokens."""

    def __init__(self, experts: SymbolExperts) -> None:
        super().__init__()
        self.experts = experts
        self.tokens_BT = torch.zeros(0, 0)

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        return self.experts(x_ND, SymbolRouting(routing, self.tokens_BT))


@torch.no_grad()
def _recovered_alone(model: LanguageModel, layer: int, symbols: BlockSymbols, held_out: HeldOut, places: int) -> float:
    """loss_recovered on validation tokens with only this block replaced, against only this block zeroed."""
    spec = _spec(model, [symbols], held_out.corpus.spec.vocab_size, places)
    reading = _Reading(_symbol_experts(model, layer, symbols, spec, 0))
    arms: dict[str, dict[int, nn.Module]] = {"whole": {}, "zeroed": {layer: Nothing()}, "symbols": {layer: reading}}
    losses = dict.fromkeys(arms, 0.0)
    for inputs_BT, targets_BT in held_out.validation_batches(f"check block {layer}"):
        reading.tokens_BT = inputs_BT
        for name, experts in arms.items():
            with swapped(model, experts):
                losses[name] += token_losses(model(inputs_BT), targets_BT).double().sum().item()
    return (losses["zeroed"] - losses["symbols"]) / (losses["zeroed"] - losses["whole"])
