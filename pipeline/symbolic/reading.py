"""What an expert of a symbols model says, for people: when it fires, how strongly, and what it then adds.

Expressions are built from the tables, number by number; no text of an artifact is evaluated.
"""

# N tokens, D model width, P pairs (a token and an expert), V vocabulary

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from sympy.logic.boolalg import Boolean
from torch import Tensor

from kernels.symbol_table.tables import context_of
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer import PeerRouter
from pipeline.models.symbols import SymbolExperts, SymbolRouter, SymbolRouting
from pipeline.symbolic.circuits import Circuit, expression, of_tables
from pipeline.symbolic.functions import BY_CODE, SPLINE_CODE
from pipeline.symbolic.names import symbol
from pipeline.symbolic.spline import KNOTS, Splines, evaluate_pairs
from pipeline.symbolic.tiers import Tier

DIGITS = 3
"""Significant digits of a number that is shown."""
OWN_SET = "own set of "
"""How the name of a literal begins that is one expert's own set of tokens."""
Z = sympy.Symbol("z", real=True)
"""The argument of an expert's function."""
TOKENS_NAMED = 5
"""Tokens that a direction is described by, each way."""


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
    model: LanguageModel, layer: int, expert: int, names: Sequence[str], vocabulary: Sequence[str]
) -> Reading:
    """The expert's reading; ValueError that gives the range for a layer or expert that is not there.

    `names` are the literals of this block, `vocabulary` the text of every token.
    """
    experts = symbol_experts(model, layer)
    if not 0 <= expert < len(experts.tier_E):
        raise ValueError(
            f"expert {expert} is not in layer {layer}, which has the experts 0 to {len(experts.tier_E) - 1}"
        )
    rule = firing_statement(model, layer, expert, names, vocabulary)
    return Reading(
        layer=layer,
        expert=expert,
        tier=Tier(int(experts.tier_E[expert])),
        firing=_in_words(rule, experts, expert),
        rule=rule,
        function=_function(experts, expert, Z, DIGITS),
        argument=_argument(experts, expert, DIGITS),
        magnitude=magnitude_expression(experts, expert),
        num_coordinates=len(coefficients(experts, expert)),
        direction=_direction(model, experts, expert, vocabulary),
    )


def score_keys(model: LanguageModel, layer: int, expert: int) -> tuple[int, list[tuple[str, int, int]]]:
    """The scores that an exact comparison adds up: the block of their router, and (axis, head, sub-key) of each."""
    experts = symbol_experts(model, layer)
    spec = experts.spec.peer
    row, column = divmod(int(experts.index.cell_of_experts()[expert]), spec.num_columns)
    keys = [(axis, head, key) for head in range(spec.num_heads) for axis, key in (("A", row), ("B", column))]
    return router_block(model, layer), keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSum:
    """A score as the router makes it out of features. What is compared is the log gate of this sum."""

    symbol: str
    terms: dict[int, float]
    """What multiplies each feature, the largest first."""
    intercept: float

    def __str__(self) -> str:
        total = " ".join(f"{value:+.{DIGITS}g} {symbol('f', None, feature)}" for feature, value in self.terms.items())
        return f"{self.symbol} = {total} {self.intercept:+.{DIGITS}g}"


def score_sums(model: LanguageModel, layer: int, keys: Sequence[tuple[str, int, int]]) -> list[ScoreSum]:
    """These scores of the router that this block obeys; none where scores are made of no features."""
    router = _router(model, layer)
    if not router.spec.score_features:
        return []
    found = []
    for axis, head, index in keys:
        before, widths = (0, router.widths[0]) if axis == "A" else router.widths
        row = before + head * widths // router.spec.num_heads + index
        terms = sorted(enumerate(router.query.weight[row].tolist()), key=lambda term: -abs(term[1]))
        named = {feature: weight for feature, weight in terms if weight}
        intercept = router.query.bias[row].item()
        found.append(ScoreSum(symbol=symbol(axis, head, index), terms=named, intercept=intercept))
    return found


def heaviest_features(sums: Sequence[ScoreSum], count: int) -> list[str]:
    """The features that weigh most in any of these scores, by their symbols."""
    weight: dict[int, float] = {}
    for score in sums:
        for feature, value in score.terms.items():
            weight[feature] = max(weight.get(feature, 0.0), abs(value))
    return [symbol("f", None, feature) for feature in sorted(weight, key=lambda f: -weight[f])[:count]]


def router_block(model: LanguageModel, layer: int) -> int:
    """The block whose router this one obeys: its own, or the nearest below."""
    blocks = model.blocks()
    return next(below for below in range(layer, -1, -1) if blocks[below].router is not None)


def coefficients(experts: SymbolExperts, expert: int) -> dict[int, float]:
    """What multiplies each coordinate in the expert's argument, in order of their indices."""
    if experts.tier_E[expert] == Tier.T0:
        u_D = experts.dense_u_FD[int(experts.dense_row_E[expert])]
        return {index: float(value) for index, value in enumerate(u_D) if value != 0}
    found: dict[int, float] = {}
    for index, value in zip(experts.index_EK[expert].tolist(), experts.coefficient_EK[expert].tolist(), strict=True):
        if value != 0:
            found[index] = found.get(index, 0.0) + value
    return dict(sorted(found.items()))


def coordinates_by_size(experts: SymbolExperts, expert: int) -> list[int]:
    """The coordinates that the expert's argument names, those with the largest coefficients first."""
    found = coefficients(experts, expert)
    return sorted(found, key=lambda index: -abs(found[index]))


def arguments(experts: SymbolExperts, expert: int, x_ND: Tensor) -> Tensor:
    """(N) z of the expert on these states."""
    found = coefficients(experts, expert)
    weight_K = torch.tensor(list(found.values()))
    return x_ND[:, list(found)] @ weight_K + experts.intercept_E[expert]


def function_values(experts: SymbolExperts, expert: int, z_N: Tensor) -> Tensor:
    """(N) the magnitude of the expert at these arguments, straight from its tables."""
    code = int(experts.code_E[expert])
    if code == SPLINE_CODE:
        splines = Splines(experts.spline_low_W, experts.spline_high_W, experts.spline_coefficient_WK)
        value_N = evaluate_pairs(splines, experts.spline_row_E[expert].long().expand(len(z_N)), z_N)
    else:
        value_N = BY_CODE[code].f(z_N)
    return experts.scale_E[expert] * value_N + experts.offset_E[expert]


def symbol_experts(model: LanguageModel, layer: int) -> SymbolExperts:
    """The symbolic experts of a block; ValueError that gives the range for a layer that is not there."""
    blocks = model.blocks()
    if not 0 <= layer < len(blocks):
        raise ValueError(f"layer {layer} is not in this model, which has the layers 0 to {len(blocks) - 1}")
    experts = blocks[layer].moe
    if not isinstance(experts, SymbolExperts):
        raise ValueError(f"a {model.kind!r} has no symbols to read; a 'symbols' was needed here")
    return experts


def magnitude_expression(experts: SymbolExperts, expert: int, *, digits: int | None = DIGITS) -> sympy.Expr:
    """scale * f(z) + offset in x_0, x_1..., rounded to that many significant digits; None rounds nothing."""
    return _function(experts, expert, _argument(experts, expert, digits), digits)


def magnitudes_by_formula(experts: SymbolExperts, expert: int, x_ND: Tensor) -> Tensor:
    """(N) the unrounded expression on these states, in float64: an oracle for `SymbolExperts.magnitudes`."""
    formula = magnitude_expression(experts, expert, digits=None)
    symbols = sorted(formula.free_symbols, key=str)
    columns = [x_ND[:, int(str(symbol).removeprefix("x_"))].double().numpy() for symbol in symbols]
    values = sympy.lambdify(symbols, formula, modules=["scipy", "numpy"])(*columns)
    return torch.as_tensor(values, dtype=torch.float64).expand(len(x_ND))


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
        return _comparisons(_router(model, layer), experts, expert, digits)
    if len(names) != len(experts.member_LV):
        raise ValueError(f"layer {layer} has {len(experts.member_LV)} literals and {len(names)} names for them")
    circuit = rule_circuit(experts, expert)
    said = [literal_name(experts, literal, names, vocabulary) for literal in circuit.inputs]
    # Tokens that are no UTF-8 of their own all look alike.
    distinct = [
        name if said.count(name) == 1 else f"{name} (literal {literal})"
        for name, literal in zip(said, circuit.inputs, strict=True)
    ]
    return expression(circuit, [sympy.Symbol(name) for name in distinct])


def rule_circuit(experts: SymbolExperts, expert: int) -> Circuit:
    """The gates that say when an expert of a logic tier fires, over the block's literals."""
    tables, num_literals = experts.tables, len(experts.member_LV)
    return of_tables(int(tables.rule_E[expert]), tables.gate_G, tables.wire_a_G, tables.wire_b_G, num_literals)


def literal_name(experts: SymbolExperts, literal: int, names: Sequence[str], vocabulary: Sequence[str]) -> str:
    """The literal's name; of an expert's own set the tokens themselves, such as token[-1] in {'a', ' the'}."""
    if not names[literal].startswith(OWN_SET):
        return names[literal]
    tokens = torch.nonzero(experts.member_LV[literal])[:, 0].tolist()
    listed = ", ".join(repr(vocabulary[token]) for token in tokens)
    return f"token[{-int(experts.literal_offset_L[literal])}] in {{{listed}}}"


def latex(expression: sympy.Basic) -> str:
    """LaTeX of a rule or a formula; the names of literals are set as text."""
    texts = {
        symbol: rf"\text{{{_escaped(str(symbol))}}}"
        for symbol in expression.atoms(sympy.Symbol)
        if not _is_score(symbol) and not _is_variable(symbol)
    }
    return sympy.latex(expression, symbol_names=texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Firings:
    """Where the experts of a block fire on a sample of tokens, and with what gate * magnitude."""

    token_P: Tensor
    expert_P: Tensor
    strength_P: Tensor


@torch.no_grad()
def firings(experts: SymbolExperts, x_ND: Tensor, routing: SymbolRouting) -> Firings:
    """Every firing of the block; heads that reach one expert for one token add up."""
    expert_P, start_N1, gate_P = experts.index(routing.cells)
    token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
    exact_P = experts.tier_E[expert_P] <= Tier.T1
    by_logic_X = torch.nonzero((experts.tier_E == Tier.T2) | (experts.tier_E == Tier.T3))[:, 0]
    logic_token_P, logic_expert_P = experts.logic_firings(
        by_logic_X, context_of(routing.tokens_BT, experts.spec.places)
    )
    key_P = torch.cat([token_P[exact_P], logic_token_P]) * len(experts.tier_E)
    key_P += torch.cat([expert_P[exact_P], logic_expert_P])
    gates_P = torch.cat([gate_P[exact_P], gate_P.new_ones(len(logic_token_P))])
    key_Q, where_P = torch.unique(key_P, return_inverse=True)
    gate_Q = gate_P.new_zeros(len(key_Q)).index_add(0, where_P, gates_P)
    token_Q, expert_Q = key_Q // len(experts.tier_E), key_Q % len(experts.tier_E)
    strength_Q = gate_Q * experts.magnitudes(x_ND, token_Q, expert_Q)
    return Firings(token_P=token_Q, expert_P=expert_Q, strength_P=strength_Q)


def output_energies(experts: SymbolExperts, fired: Firings) -> Tensor:
    """(E) the squared length of what each expert added, summed over its firings."""
    strength2_E = torch.zeros(len(experts.tier_E)).index_add(0, fired.expert_P, fired.strength_P.square())
    return strength2_E * experts.v.rows(torch.arange(len(experts.tier_E))).square().sum(1)


def _number(value: float, digits: int | None) -> sympy.Float:
    """The float, or its `digits` first digits."""
    return sympy.Float(value) if digits is None else sympy.Float(float(f"{value:.{digits}g}"), digits)


def _argument(experts: SymbolExperts, expert: int, digits: int | None) -> sympy.Expr:
    terms = [
        _number(value, digits) * sympy.Symbol(f"x_{index}", real=True)
        for index, value in coefficients(experts, expert).items()
    ]
    intercept = float(experts.intercept_E[expert])
    return sympy.Add(*terms, *([_number(intercept, digits)] if intercept or not terms else []))


def _function(experts: SymbolExperts, expert: int, z: sympy.Expr, digits: int | None) -> sympy.Expr:
    code = int(experts.code_E[expert])
    value = _spline(experts, expert, z, digits) if code == SPLINE_CODE else BY_CODE[code].symbol(z)
    scale, offset = float(experts.scale_E[expert]), float(experts.offset_E[expert])
    scaled = value if scale == 1 else _number(scale, digits) * value
    return scaled + _number(offset, digits) if offset else scaled


def _spline(experts: SymbolExperts, expert: int, z: sympy.Expr, digits: int | None) -> sympy.Expr:
    """The cubic of every interval between knots, about its left knot; constant outside the outermost."""
    row = int(experts.spline_row_E[expert])
    low, high = float(experts.spline_low_W[row]), float(experts.spline_high_W[row])
    coefficients = experts.spline_coefficient_WK[row].tolist()
    step = (high - low) / (KNOTS - 1)
    pieces: list[tuple[sympy.Expr, Boolean]] = []
    for cell in range(KNOTS - 1):
        a, b, c, d = coefficients[cell : cell + 4]
        # Of the uniform cubic B-spline's four weights, by powers of the distance to the knot in steps.
        powers = ((a + 4 * b + c) / 6, (c - a) / 2, (a - 2 * b + c) / 2, (d - a + 3 * (b - c)) / 6)
        if cell == 0:
            pieces.append((_number(powers[0], digits), z < _number(low, digits)))
        left = _number(low + cell * step, digits)
        terms = [_number(power / step**n, digits) * (z - left) ** n for n, power in enumerate(powers)]
        pieces.append((sympy.Add(*terms), z < _number(low + (cell + 1) * step, digits)))
    b, c, d = coefficients[-3:]
    pieces.append((_number((b + 4 * c + d) / 6, digits), sympy.true))
    return sympy.Piecewise(*pieces)


def _router(model: LanguageModel, layer: int) -> PeerRouter:
    router = model.blocks()[router_block(model, layer)].router
    assert isinstance(router, SymbolRouter)
    return router.scores


def _comparisons(router: PeerRouter, experts: SymbolExperts, expert: int, digits: int | None) -> Boolean:
    cell = int(experts.index.cell_of_experts()[expert])
    row, column = divmod(cell, router.spec.num_columns)
    if router.spec.gate == "softmax":
        # No threshold: the pair must be among the best of its head, a relation to all other scores.
        return sympy.Or(
            *(sympy.Symbol(f"({_best(router, head, row, column)})") for head in range(router.spec.num_heads))
        )
    return sympy.Or(
        *(
            sympy.Gt(
                _score("A", head, row) + _score("B", head, column), _threshold(float(router.threshold_H[head]), digits)
            )
            for head in range(router.spec.num_heads)
        )
    )


def _best(router: PeerRouter, head: int, row: int, column: int) -> str:
    return f"A^{head}_{row} + B^{head}_{column} is among the {router.spec.pairs_per_head} best of head {head}"


def _score(axis: str, head: int, key: int) -> sympy.Symbol:
    # Log gates are minus infinity where a sub-key does not pass, so they are not plain reals.
    return sympy.Symbol(f"{axis}^{head}_{key}", extended_real=True)


def _threshold(value: float, digits: int | None) -> sympy.Expr:
    return -sympy.oo if value == float("-inf") else _number(value, digits)


def _in_words(rule: Boolean, experts: SymbolExperts, expert: int) -> str:
    if rule == sympy.false:
        return "never"
    if experts.tier_E[expert] >= Tier.T2:
        return str(rule)
    return " or ".join(_side(part) for part in (rule.args if isinstance(rule, sympy.Or) else (rule,)))


def _side(part: sympy.Basic) -> str:
    return str(part).removeprefix("(").removesuffix(")")


def _direction(model: LanguageModel, experts: SymbolExperts, expert: int, vocabulary: Sequence[str]) -> str:
    v_D = experts.v.rows(torch.tensor([expert]))[0]
    with torch.no_grad():
        logit_V = model.lm_head.weight @ (model.model.norm.weight * v_D)
    count = min(TOKENS_NAMED, len(logit_V))
    up, down = (
        ", ".join(repr(vocabulary[token]) for token in logit_V.topk(count, largest=largest).indices.tolist())
        for largest in (True, False)
    )
    return f"v of length {v_D.norm():.{DIGITS}g}; read by the unembedding alone it raises {up}; lowers {down}"


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
