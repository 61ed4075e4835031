"""The experts of a layer as a list in a terminal: how each is written, what it is worth, what tokens say of it."""

# E experts

from collections.abc import Iterator, Sequence

import torch

from artifacts.terminal import on_one_line
from pipeline.symbolic.asking.lines import fitted
from pipeline.symbolic.names.names import Name, Said
from pipeline.symbolic.showing.blocks import router_block, symbol_experts
from pipeline.symbolic.showing.fired import Firings, output_energies
from pipeline.symbolic.showing.opened import OpenedSymbols, sample
from pipeline.symbolic.tiers import TIER_WORDS, Tier

SCORES = 8
"""Of a router whose names are shown."""
_HEAD = "  expert tier  output  fires    F1 (null)  by tokens alone it fires if"


def layer_lines(opened: OpenedSymbols, layers: Sequence[int], *, most: int) -> Iterator[str]:
    """Layer by layer: its tiers, and the `most` experts with most output."""
    found = sample(opened, layers)
    yield fitted(f"{opened.id}, on {found.tokens_WT.numel():,} held-out tokens")
    yield "F1 (null): of the statement, in the model that was distilled, on held-out text"
    for layer, fired in zip(layers, found.fired, strict=True):
        yield ""
        yield from _layer(opened, layer, fired, most)


def _layer(opened: OpenedSymbols, layer: int, fired: Firings, most: int) -> Iterator[str]:
    experts = symbol_experts(opened.model, layer)
    energy_E = output_energies(experts, fired)
    count_E = torch.bincount(fired.expert_P, minlength=len(energy_E))
    total = float(energy_E.sum()) or 1.0
    yield f"layer {layer}"
    for tier in Tier:
        of_tier_E = experts.tier_E == tier
        share = float(energy_E[of_tier_E].sum()) / total
        yield f"  {tier.name}  {int(of_tier_E.sum()):6}  {share:6.1%} of the output  {TIER_WORDS[tier]}"
    said = {one.expert: one for one in opened.quantities.experts if one.block == layer}
    yield "the experts with most output:"
    yield _HEAD
    for expert in energy_E.topk(min(most, len(energy_E))).indices.tolist():
        tier = Tier(int(experts.tier_E[expert])).name
        figures = f"{float(energy_E[expert]) / total:7.1%}  {int(count_E[expert]):5}"
        yield fitted(f"{expert:8} {tier:>4} {figures}  {_said(said.get(expert))}").rstrip()
    if best := opened.quantities.best_scores(router_block(opened.model, layer), SCORES):
        yield "the scores that tokens say best: F1 (null, best on permuted tokens), high if"
        yield from map(_score, best)


def _said(said: Said | None) -> str:
    return "" if said is None else f"{said.f1:.2f} ({said.null_f1:.3f})  {on_one_line(said.statement)}"


def _score(name: Name) -> str:
    figures = f"{name.f1:.2f} ({name.null_f1:.2f}, {name.permuted_f1:.2f})"
    return fitted(f"{name.symbol:>8}  {figures}  {on_one_line(name.brief)}")
