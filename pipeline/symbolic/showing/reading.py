"""What an expert of a symbols model says, for people: when it fires, how strongly, and what it then adds.

Expressions are built from the tables, number by number; no text of an artifact is evaluated.
"""

# N tokens, D model width, X experts

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from sympy.logic.boolalg import Boolean

from kernels.errors import Mistake
from pipeline.corpus.visible import quoted_text
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.asking.words import written
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.firing_rules import firing_statement, in_words
from pipeline.symbolic.showing.magnitudes import (
    DIGITS,
    Z,
    argument_expression,
    coefficients,
    function_expression,
    magnitude_expression,
)
from pipeline.symbolic.tiers import Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One expert, written out. Numbers are rounded; `magnitude_expression(..., digits=None)` has them whole."""

    layer: int
    expert: int
    tier: Tier
    firing: str
    """The firing rule in words."""
    rule: Boolean
    """The firing rule as logic; its symbols are scores of the router, or literals."""
    function: sympy.Expr
    """The magnitude as a function of z."""
    argument: sympy.Expr
    """z in coordinates x_0, x_1... of the normalised state."""
    magnitude: sympy.Expr
    """The function of its argument."""
    num_coordinates: int
    direction: str
    """What the expert adds to the stream when it fires."""


def read_expert(
    model: LanguageModel,
    layer: int,
    expert: int,
    names: Sequence[str],
    vocabulary: Sequence[str],
    *,
    digits: int | None = DIGITS,
) -> Reading:
    """The expert's reading; ValueError that gives the range for a layer or expert that is not there.

    `names` are the literals of this block, `vocabulary` the text of every token. Numbers have so many digits; None
    leaves them whole.
    """
    experts = symbol_experts(model, layer)
    if not 0 <= expert < len(experts.tier_E):
        raise Mistake(f"expert {expert} is not in layer {layer}, which has the experts 0 to {len(experts.tier_E) - 1}")
    rule = firing_statement(model, layer, expert, names, vocabulary, digits=digits)
    return Reading(
        layer=layer,
        expert=expert,
        tier=Tier(int(experts.tier_E[expert])),
        firing=in_words(rule, experts, expert),
        rule=rule,
        function=function_expression(experts, expert, Z, digits),
        argument=argument_expression(experts, expert, digits),
        magnitude=magnitude_expression(experts, expert, digits=digits),
        num_coordinates=len(coefficients(experts, expert)),
        direction=_direction(model, experts, expert, vocabulary),
    )


def latex(expression: sympy.Basic) -> str:
    """LaTeX of a rule or a formula; the names of literals are set as text."""
    texts = {
        symbol: rf"\text{{{_escaped(str(symbol))}}}"
        for symbol in expression.atoms(sympy.Symbol)
        if not _is_score(symbol) and not _is_variable(symbol)
    }
    return sympy.latex(expression, symbol_names=texts)


def _direction(model: LanguageModel, experts: SymbolExperts, expert: int, vocabulary: Sequence[str]) -> str:
    v_XD = experts.v.rows(torch.tensor([expert]))
    (wrote,) = written(model, v_XD)
    up, down = (", ".join(quoted_text(vocabulary[token]) for token in side) for side in (wrote.raises, wrote.lowers))
    return f"v of length {v_XD.norm():.{DIGITS}g}; read by the unembedding alone it raises {up}; lowers {down}"


def _is_score(symbol: sympy.Basic) -> bool:
    return bool(symbol.is_extended_real) and str(symbol)[:2] in ("A^", "B^")


def _is_variable(symbol: sympy.Basic) -> bool:
    return bool(symbol.is_real)


_LATEX: Mapping[str, str] = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "{}_$%#&"},
}  # fmt: skip


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
