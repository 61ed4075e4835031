"""When an expert fires, as logic over scores of its router or over literals."""

from collections.abc import Sequence

import sympy
import torch
from sympy.logic.boolalg import Boolean

from kernels.errors import Mistake
from pipeline.corpus.visible import quoted_text
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.rules.circuits import Circuit, expression, of_tables
from pipeline.symbolic.showing.blocks import router_scores, symbol_experts
from pipeline.symbolic.showing.magnitudes import DIGITS, number
from pipeline.symbolic.tiers import Tier

OWN_SET = "own set of "
"""How the name of a literal begins that is one expert's own set of tokens."""


def firing_statement(
    model: LanguageModel,
    layer: int,
    expert: int,
    names: Sequence[str],
    vocabulary: Sequence[str],
    *,
    digits: int | None = DIGITS,
) -> Boolean:
    """When the expert fires. Exact tiers: its row's and column's score against the threshold, for any head.

    Logic tiers: its circuit over literals. A dropped expert never fires. `digits` None leaves thresholds whole.
    """
    experts = symbol_experts(model, layer)
    tier = Tier(int(experts.tier_E[expert]))
    if tier == Tier.T4:
        return sympy.false
    if tier <= Tier.T1:
        return _comparisons(router_scores(model, layer), experts, expert, digits)
    if len(names) != len(experts.member_LV):
        raise Mistake(f"layer {layer} has {len(experts.member_LV)} literals and {len(names)} names for them")
    circuit = rule_circuit(experts, expert)
    distinct = rule_names(experts, circuit, names, vocabulary)
    return expression(circuit, [sympy.Symbol(name) for name in distinct])


def rule_circuit(experts: SymbolExperts, expert: int) -> Circuit:
    """The gates that say when an expert of a logic tier fires, over the block's literals."""
    tables, num_literals = experts.symbol_tables, len(experts.member_LV)
    return of_tables(int(tables.rule_E[expert]), tables.gate_G, tables.wire_a_G, tables.wire_b_G, num_literals)


def rule_names(experts: SymbolExperts, circuit: Circuit, names: Sequence[str], vocabulary: Sequence[str]) -> list[str]:
    """The names of a rule's literals, no two alike."""
    said = [literal_name(experts, literal, names, vocabulary) for literal in circuit.inputs]
    numbered = [f"{name} (literal {literal})" for name, literal in zip(said, circuit.inputs, strict=True)]
    # Tokens that are no UTF-8 of their own all look alike.
    distinct = [name if said.count(name) == 1 else other for name, other in zip(said, numbered, strict=True)]
    # A file of another writer may call a literal as another is called here.
    return distinct if len(set(distinct)) == len(distinct) else numbered


def literal_name(experts: SymbolExperts, literal: int, names: Sequence[str], vocabulary: Sequence[str]) -> str:
    """The literal's name; of an expert's own set the tokens themselves, such as token[-1] in {'a', ' the'}."""
    if not names[literal].startswith(OWN_SET):
        return names[literal]
    tokens: list[int] = torch.nonzero(experts.member_LV[literal])[:, 0].tolist()
    listed = ", ".join(quoted_text(vocabulary[token]) for token in tokens)
    return f"token[{-int(experts.literal_offset_L[literal])}] in {{{listed}}}"


def _comparisons(router: PeerRouter, experts: SymbolExperts, expert: int, digits: int | None) -> Boolean:
    cell = int(experts.index.cell_of_experts()[expert])
    row, column = divmod(cell, router.spec.num_columns)
    limit_H = router.gate.limits(router)
    if limit_H is None:
        # No threshold: the pair must be among the best of its head, a relation to all other scores.
        return sympy.Or(
            *(sympy.Symbol(f"({_best(router, head, row, column)})") for head in range(router.spec.num_heads))
        )
    return sympy.Or(
        *(
            sympy.Gt(_score("A", head, row) + _score("B", head, column), _threshold(limit, digits))
            for head, limit in enumerate(limit_H.tolist())
        )
    )


def _best(router: PeerRouter, head: int, row: int, column: int) -> str:
    return f"A^{head}_{row} + B^{head}_{column} is among the {router.spec.pairs_per_head} best of head {head}"


def _score(axis: str, head: int, key: int) -> sympy.Symbol:
    # Log gates are minus infinity where a sub-key does not pass, so they are not plain reals.
    return sympy.Symbol(f"{axis}^{head}_{key}", extended_real=True)


def _threshold(value: float, digits: int | None) -> sympy.Expr:
    return -sympy.oo if value == float("-inf") else number(value, digits)


def in_words(rule: Boolean, experts: SymbolExperts, expert: int) -> str:
    """The rule as text."""
    if rule == sympy.false:
        return "never"
    if experts.tier_E[expert] >= Tier.T2:
        return str(rule)
    return " or ".join(_side(part) for part in (rule.args if isinstance(rule, sympy.Or) else (rule,)))


def _side(part: sympy.Basic) -> str:
    return str(part).removeprefix("(").removesuffix(")")
