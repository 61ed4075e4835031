"""One expert as lines of a terminal."""

import sympy

from artifacts.terminal import printable
from pipeline.corpus.visible import bytes_of, quoted
from pipeline.symbolic.names.names import symbol
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.contexts import spread
from pipeline.symbolic.showing.expert_data import expert_data
from pipeline.symbolic.showing.expert_form import ExpertData, LogicFiring, ScoreFiring
from pipeline.symbolic.showing.firing_text import TERMS, left_out, literal_lines, score_lines, score_words
from pipeline.symbolic.showing.magnitudes import DIGITS, coordinates_by_size
from pipeline.symbolic.showing.opened import OpenedSymbols, sample
from pipeline.symbolic.showing.reading import Reading, latex
from pipeline.symbolic.showing.scores import heaviest_features, score_keys, score_sums
from pipeline.symbolic.tiers import TIER_WORDS, Tier

CONTEXTS = 8
TOKENS_BEFORE = 12
"""Tokens shown before the one on which an expert fires."""
NAMED = 8
"""Coordinates, or scores of a router, whose names are shown."""


def data_of(opened: OpenedSymbols, reading: Reading) -> ExpertData:
    names = opened.names[reading.layer]
    return expert_data(opened.model, reading.layer, reading.expert, names, opened.vocabulary, id=opened.id)


def show_expert(opened: OpenedSymbols, reading: Reading, *, in_latex: bool, whole: bool) -> None:
    _put(f"{opened.id}, layer {reading.layer}, expert {reading.expert}\n")
    _put(f"tier         {reading.tier.name}, {TIER_WORDS[reading.tier]}")
    if reading.tier == Tier.T4:
        _put("fires        never: its output was worth less than a description")
        return
    _put(f"fires if     {reading.firing}")
    data = data_of(opened, reading)
    _show_where(opened, data, whole=whole)
    if said := opened.quantities.said(reading.layer, reading.expert):
        _put(f"by tokens    {said.words}, F1 in the model that was distilled, on held-out text")
    if reading.tier <= Tier.T1:
        _put("then adds    gate * magnitude * v, the router's gate summed over the heads that fire")
    else:
        _put("then adds    magnitude * v")
    _put(f"magnitude    {reading.function}")
    uses_z = bool(reading.function.free_symbols)
    if uses_z:
        _put(f"where z is   {reading.argument if whole else shortened(reading)}")
    if uses_z and reading.tier >= Tier.T2:
        _put(f"x            the state that block {reading.layer} normalises for its experts")
    _put(f"coordinates  {reading.num_coordinates if uses_z else 0}")
    _put(f"v            {reading.direction}")
    if whole and data.writes is not None:
        _put(f"v, whole     {' '.join(map(repr, data.writes.v))}")
    if not whole:
        _put(f"digits       {DIGITS}; --all and --json give every term and digit")
    if in_latex:
        _put(f"\nLaTeX\n{latex(reading.rule)}\n{latex(reading.function)}")
        if uses_z:
            _put(f"z = {latex(reading.argument)}")
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
        _put(f"{label:12} {line}")


def _show_sums(layer: int, data: ExpertData, *, whole: bool) -> None:
    if isinstance(data.fires, ScoreFiring):
        _put("\nscores, before cut and normaliser")
        for line in score_lines(data.fires, layer, whole=whole):
            _put(f"  {line}")


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
        _put("\nhigh where (in words of tokens; null: a random statement of that rate, permuted: the best on noise)")
    for name in named:
        _put(f"  {name.symbol:>8}  {name.words}")


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
    found = sample(opened, (reading.layer,))
    (fired,) = found.fired
    own_P = fired.expert_P == reading.expert
    token_P, strength_P = fired.token_P[own_P], fired.strength_P[own_P]
    _put(f"\nfires on {len(token_P):,} of {found.tokens_WT.numel():,} held-out tokens", end="")
    _put(f", adds something on {int((strength_P != 0).sum()):,}" if len(token_P) else "", end="")
    _put("; from the strongest to the weakest, on the last token of" if len(token_P) else "")
    token_bytes = opened.corpus.tokenizer.token_bytes

    def text_of(place: int) -> str:
        at = int(token_P[place])
        before = found.before(at, TOKENS_BEFORE)
        return quoted(bytes_of(token_bytes, [*before, int(found.tokens_WT.flatten()[at])]))

    for place in spread(strength_P, found.document_N[token_P], text_of, CONTEXTS):
        _put(f"  {float(strength_P[place]):10.3g}  {text_of(place)}")


def _put(text: str = "", end: str = "\n") -> None:
    """A line of what others wrote: no character of it moves the cursor."""
    print(printable(text), end=end)
