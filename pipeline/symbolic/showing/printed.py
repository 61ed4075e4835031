"""Layers and experts as lines of a terminal."""

from collections.abc import Sequence

import sympy
import torch

from pipeline.symbolic.names.names import symbol
from pipeline.symbolic.showing.blocks import router_block, symbol_experts
from pipeline.symbolic.showing.expert_data import expert_data
from pipeline.symbolic.showing.expert_form import ExpertData, LogicFiring, ScoreFiring
from pipeline.symbolic.showing.fired import output_energies
from pipeline.symbolic.showing.firing_text import TERMS, left_out, literal_lines, score_lines, score_words
from pipeline.symbolic.showing.magnitudes import DIGITS, coordinates_by_size
from pipeline.symbolic.showing.opened import OpenedSymbols, sample
from pipeline.symbolic.showing.reading import Reading, latex, read_expert
from pipeline.symbolic.showing.scores import heaviest_features, score_keys, score_sums
from pipeline.symbolic.tiers import TIER_WORDS, Tier

CONTEXTS = 8
TOKENS_BEFORE = 12
"""Tokens shown before the one on which an expert fires."""
LARGEST = 10
LOG_GATES = "A and B are log gates: scores that pass a cut, normalised over those that pass; --expert E gives both"
NAMED = 8
"""Coordinates, or scores of a router, whose names are shown."""


def show_layers(opened: OpenedSymbols, layers: Sequence[int]) -> None:
    tokens_WT, fired = sample(opened, layers)
    print(f"{opened.id}, on {tokens_WT.numel():,} held-out tokens")
    for layer, layer_fired in zip(layers, fired, strict=True):
        experts = symbol_experts(opened.model, layer)
        energy_E = output_energies(experts, layer_fired)
        count_E = torch.bincount(layer_fired.expert_P, minlength=len(energy_E))
        total = float(energy_E.sum()) or 1.0
        print(f"\nlayer {layer}")
        for tier in Tier:
            of_tier_E = experts.tier_E == tier
            share = float(energy_E[of_tier_E].sum()) / total
            print(f"  {tier.name}  {int(of_tier_E.sum()):6}  {share:6.1%} of the output  {TIER_WORDS[tier]}")
        print("  the experts with most output:")
        for expert in energy_E.topk(min(LARGEST, len(energy_E))).indices.tolist():
            reading = read_expert(opened.model, layer, expert, opened.names[layer], opened.vocabulary)
            print(
                f"  {expert:6}  {reading.tier.name}  {float(energy_E[expert]) / total:6.1%}  "
                f"{int(count_E[expert]):5} firings  if {reading.firing}"
            )
        print(f"  {LOG_GATES}")
        if best := opened.quantities.best_scores(router_block(opened.model, layer), NAMED):
            print("  the scores that tokens say best:")
            for name in best:
                print(f"  {name.symbol:>8}  {name.words}")


def data_of(opened: OpenedSymbols, reading: Reading) -> ExpertData:
    names = opened.names[reading.layer]
    return expert_data(opened.model, reading.layer, reading.expert, names, opened.vocabulary, id=opened.id)


def show_expert(opened: OpenedSymbols, reading: Reading, *, in_latex: bool, whole: bool) -> None:
    print(f"{opened.id}, layer {reading.layer}, expert {reading.expert}\n")
    print(f"tier         {reading.tier.name}, {TIER_WORDS[reading.tier]}")
    if reading.tier == Tier.T4:
        print("fires        never: its output was worth less than a description")
        return
    print(f"fires if     {reading.firing}")
    data = data_of(opened, reading)
    _show_where(opened, data, whole=whole)
    if said := opened.quantities.said(reading.layer, reading.expert):
        print(f"by tokens    {said.words}")
    if reading.tier <= Tier.T1:
        print("then adds    gate * magnitude * v, the router's gate summed over the heads that fire")
    else:
        print("then adds    magnitude * v")
    print(f"magnitude    {reading.function}")
    uses_z = bool(reading.function.free_symbols)
    if uses_z:
        print(f"where z is   {reading.argument if whole else shortened(reading)}")
    if uses_z and reading.tier >= Tier.T2:
        print(f"x            the state that block {reading.layer} normalises for its experts")
    print(f"coordinates  {reading.num_coordinates if uses_z else 0}")
    print(f"v            {reading.direction}")
    if whole and data.writes is not None:
        print(f"v, whole     {' '.join(map(repr, data.writes.v))}")
    if not whole:
        print(f"digits       {DIGITS}; --all and --json give every term and digit")
    if in_latex:
        print(f"\nLaTeX\n{latex(reading.rule)}\n{latex(reading.function)}")
        if uses_z:
            print(f"z = {latex(reading.argument)}")
    _show_sums(reading.layer, data, whole=whole)
    _show_names(opened, reading)
    _show_contexts(opened, reading)


def _show_where(opened: OpenedSymbols, data: ExpertData, *, whole: bool) -> None:
    """What the symbols of the firing rule mean."""
    match data.fires:
        case ScoreFiring():
            lines = score_words(data.fires, data.layer, whole=whole)
        case LogicFiring():
            lines = literal_lines(data.fires, opened.vocabulary, whole=whole)
            lines.append("token[-n] is the token n places back; before the beginning of the text none of these is true")
        case _:
            lines = []
    for label, line in zip(("where", *[""] * len(lines)), lines, strict=False):
        print(f"{label:12} {line}")


def _show_sums(layer: int, data: ExpertData, *, whole: bool) -> None:
    if isinstance(data.fires, ScoreFiring):
        print("\nscores, before cut and normaliser")
        for line in score_lines(data.fires, layer, whole=whole):
            print(f"  {line}")


def _show_names(opened: OpenedSymbols, reading: Reading) -> None:
    """Of the scores that its firing compares, and of the coordinates that weigh most in its formula."""
    named = []
    if reading.tier <= Tier.T1:
        block, keys = score_keys(opened.model, reading.layer, reading.expert)
        named += opened.quantities.of(block, [symbol(*key) for key in keys])
        sums = score_sums(opened.model, reading.layer, keys)
        named += opened.quantities.of(block, heaviest_features(sums, NAMED))
    if reading.function.free_symbols:
        largest = coordinates_by_size(symbol_experts(opened.model, reading.layer), reading.expert)[:NAMED]
        named += opened.quantities.of(reading.layer, [symbol("x", None, index) for index in largest])
    if named:
        print("\nhigh where (in words of tokens; null: a random statement of that rate, permuted: the best on noise)")
    for name in named:
        print(f"  {name.symbol:>8}  {name.words}")


def shortened(reading: Reading) -> str:
    """z, all of it if it is of few coordinates; of a dense one the largest, and what share is left out."""
    if reading.tier != Tier.T0:
        return str(reading.argument)
    intercept = reading.argument.xreplace(dict.fromkeys(reading.argument.free_symbols, sympy.Integer(0)))
    terms = [term for term in sympy.Add.make_args(reading.argument) if term.free_symbols]
    ordered = sorted(terms, key=lambda term: -abs(float(term.as_coeff_Mul()[0])))
    shown = [*map(str, ordered[:TERMS]), *([str(intercept)] if intercept else [])]
    left = left_out([float(term.as_coeff_Mul()[0]) for term in ordered], TERMS)
    return f"{' + '.join(shown)}".replace("+ -", "- ") + left


def _show_contexts(opened: OpenedSymbols, reading: Reading) -> None:
    tokens_WT, (fired,) = sample(opened, (reading.layer,))
    own_P = fired.expert_P == reading.expert
    token_P, strength_P = fired.token_P[own_P], fired.strength_P[own_P]
    print(f"\nfires on {len(token_P):,} of {tokens_WT.numel():,} held-out tokens", end="")
    print("; most on the last token of" if len(token_P) else "")
    length = tokens_WT.shape[1]
    for at in strength_P.abs().topk(min(CONTEXTS, len(token_P))).indices.tolist():
        window, place = divmod(int(token_P[at]), length)
        text = opened.corpus.tokenizer.decode(tokens_WT[window, max(0, place - TOKENS_BEFORE) : place + 1].tolist())
        print(f"  {float(strength_P[at]):10.3g}  {text!r}")
