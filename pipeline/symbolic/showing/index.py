"""The index of a page of symbols: the experts with most output of every layer, and how each layer is written."""

# E experts

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.corpus.visible import quoted
from pipeline.models.language_model import LanguageModel
from pipeline.symbolic.asking.words import written_by
from pipeline.symbolic.names.names import Names
from pipeline.symbolic.tiers import Tier
from pipeline.symbolic.writing.assembly import BlockSymbols

MOST_ROWS = 1024
"""Of all layers together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """An expert on one line."""

    layer: int
    expert: int
    tier: Tier
    energy_share: float
    """Of its layer's output."""
    rate: float
    """Share of tokens it fires on."""
    statement: str
    """About tokens; empty where there is none."""
    f1: float
    raises: str
    """The tokens whose logits it raises most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerMap:
    """How the experts of a layer are written."""

    layer: int
    num_experts: int
    expert_shares: tuple[float, ...]
    """By tier."""
    energy_shares: tuple[float, ...]
    firings_per_token: float


def layer_maps(blocks: Sequence[BlockSymbols]) -> list[LayerMap]:
    return [
        LayerMap(
            layer=layer,
            num_experts=len(block.tier_E),
            expert_shares=tuple(float((block.tier_E == tier).double().mean()) for tier in Tier),
            energy_shares=tuple(
                float(block.energy_E[block.tier_E == tier].sum() / block.energy_E.sum().clamp(min=1e-30))
                for tier in Tier
            ),
            firings_per_token=float(block.rate_E.sum()),
        )
        for layer, block in enumerate(blocks)
    ]


def index_rows(
    model: LanguageModel, blocks: Sequence[BlockSymbols], names: Names, token_bytes: Sequence[bytes]
) -> list[Row]:
    """Layer by layer, those with most output first; as many of each layer."""
    said = {(one.block, one.expert): one.statement for one in names.experts}
    most, rows = max(1, MOST_ROWS // len(blocks)), []
    for layer, block in enumerate(blocks):
        best = block.energy_E.topk(min(most, int((block.energy_E > 0).sum())))
        experts, total = best.indices.tolist(), float(block.energy_E.sum())
        for expert, energy, wrote in zip(experts, best.values.tolist(), written_by(model, layer, experts), strict=True):
            raises = () if wrote is None else wrote.raises
            rows.append(
                Row(
                    layer=layer,
                    expert=expert,
                    tier=Tier(int(block.tier_E[expert])),
                    energy_share=energy / total,
                    rate=float(block.rate_E[expert]),
                    statement=said.get((layer, expert), ""),
                    f1=float(block.statements.token_logic.f1_E[expert]),
                    raises=" ".join(quoted(token_bytes[token]) for token in raises),
                )
            )
    return rows
