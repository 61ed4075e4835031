"""Experts read out: expressions say what the tables compute, statements say when."""

import pytest
import sympy
import torch
from torch import Tensor

from kernels.symbol_table.tables import context_of
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.rules.circuits import Circuit
from pipeline.symbolic.showing.blocks import router_block, symbol_experts
from pipeline.symbolic.showing.fired import firings, output_energies
from pipeline.symbolic.showing.firing_rules import firing_statement, literal_name, rule_names
from pipeline.symbolic.showing.magnitudes import (
    arguments,
    coordinates_by_size,
    function_values,
    magnitude_expression,
)
from pipeline.symbolic.showing.reading import latex, read_expert
from pipeline.symbolic.showing.scores import heaviest_features, score_keys, score_sums
from pipeline.symbolic.tiers import Tier
from tests.tiny_symbols import CONSTANT, DENSE, DROPPED, HEADS, KEYS, LOGIC, NAMES, SPLINE, TEXT, VOCABULARY, D, E
from tests.tolerances import assert_close

# N tokens, D model width, E experts, P pairs


def magnitudes_by_formula(experts: SymbolExperts, expert: int, x_ND: Tensor) -> Tensor:
    """(N) the unrounded expression on these states, in float64."""
    formula = magnitude_expression(experts, expert, digits=None)
    symbols = sorted(formula.free_symbols, key=str)
    columns = [x_ND[:, int(str(symbol).removeprefix("x_"))].double().numpy() for symbol in symbols]
    values = sympy.lambdify(symbols, formula, modules=["scipy", "numpy"])(*columns)
    return torch.as_tensor(values, dtype=torch.float64).expand(len(x_ND))


@pytest.mark.parametrize("expert", range(DROPPED))
def test_the_unrounded_expression_is_the_magnitude_that_the_tables_compute(symbols, expert):
    experts = symbols.blocks()[1].moe
    x_ND = torch.randn(67, D, generator=torch.Generator().manual_seed(expert))
    token_N = torch.arange(67)
    wanted_N = experts.magnitudes(x_ND, token_N, torch.full((67,), expert))
    found_N = magnitudes_by_formula(experts, expert, x_ND)
    torch.testing.assert_close(found_N.float(), wanted_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expert", range(LOGIC))
def test_the_function_of_the_argument_is_the_magnitude_that_the_tables_compute(symbols, expert):
    experts = symbols.blocks()[1].moe
    x_ND = torch.randn(67, D, generator=torch.Generator().manual_seed(expert))
    wanted_N = experts.magnitudes(x_ND, torch.arange(67), torch.full((67,), expert))
    found_N = function_values(experts, expert, arguments(experts, expert, x_ND))
    torch.testing.assert_close(found_N, wanted_N, rtol=1e-4, atol=1e-5)


def test_the_scores_and_coordinates_of_an_expert_are_those_of_its_rule_and_formula(symbols):
    block, keys = score_keys(symbols, 1, 11)
    rule = {str(symbol) for symbol in firing_statement(symbols, 1, 11, NAMES, VOCABULARY).free_symbols}
    assert block == router_block(symbols, 1) == 0
    assert {f"{axis}^{head}_{key}" for axis, head, key in keys} == rule
    experts = symbol_experts(symbols, 1)
    size = dict(zip(experts.index_EK[11].tolist(), experts.coefficient_EK[11].abs().tolist(), strict=True))
    wanted = sorted((index for index in size if size[index] > 0), key=lambda index: -size[index])
    assert coordinates_by_size(experts, 11) == wanted


def test_the_expression_of_a_spline_is_a_piecewise_cubic_that_is_constant_outside(symbols):
    experts = symbols.blocks()[1].moe
    shown = magnitude_expression(experts, SPLINE)
    assert isinstance(shown, sympy.Piecewise)
    assert len(shown.args) == 1 + 8 + 1
    x_ND = torch.zeros(2, D)
    index, coefficient = int(experts.index_EK[SPLINE, 0]), float(experts.coefficient_EK[SPLINE, 0])
    x_ND[:, index] = torch.tensor([50.0, 5000.0]) / coefficient
    high, higher = magnitudes_by_formula(experts, SPLINE, x_ND).tolist()
    assert high == higher


def test_a_shown_formula_is_rounded_and_names_only_its_coordinates(symbols):
    experts = symbols.blocks()[0].moe
    shown = magnitude_expression(experts, 9, digits=3)
    named = {f"x_{index}" for index in experts.index_EK[9, :3].tolist()}
    assert {str(symbol) for symbol in shown.free_symbols} == named
    assert all(number == sympy.Float(float(f"{float(number):.3g}"), 3) for number in shown.atoms(sympy.Float))
    assert len(magnitude_expression(experts, DENSE).free_symbols) == D
    assert magnitude_expression(experts, CONSTANT, digits=None) == float(experts.scale_E[CONSTANT])


@pytest.mark.parametrize("layer", [0, 1])
def test_an_exact_firing_rule_compares_the_experts_scores_with_the_thresholds_of_the_router_it_obeys(symbols, layer):
    experts = symbol_experts(symbols, layer)
    expert = 11
    cell = int(experts.index.cell_of_experts()[expert])
    row, column = cell // KEYS, cell % KEYS
    wanted = [f"A^{h}_{row} + B^{h}_{column} > {limit}" for h, limit in enumerate(("-2.5", "-3.25"))]
    reading = read_expert(symbols, layer, expert, NAMES, VOCABULARY)
    assert sorted(reading.firing.split(" or ")) == sorted(wanted)
    assert reading.tier == Tier.T1
    assert reading.num_coordinates == 3


def test_the_exact_rule_is_true_where_the_model_fires(symbols):
    tokens_BT = torch.randint(256, (3, 15), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        trace = symbols.trace(tokens_BT)
        row_NHI, column_NHJ = symbols.blocks()[0].router.scores.log_gates(trace.expert_inputs[0])
    fired = firings(symbols.blocks()[0].moe, trace.expert_inputs[0], trace.routings[0])
    for expert in (DENSE, 5, 11):
        rule = firing_statement(symbols, 0, expert, NAMES, VOCABULARY, digits=None)
        where = set(fired.token_P[fired.expert_P == expert].tolist())
        for token in range(tokens_BT.numel()):
            values = {}
            for symbol in rule.free_symbols:
                head, key = map(int, str(symbol)[2:].split("_"))
                score = float((row_NHI if str(symbol)[0] == "A" else column_NHJ)[token, head, key])
                values[symbol] = sympy.Float(score) if score > float("-inf") else -sympy.oo
            assert bool(rule.subs(values)) == (token in where)


def test_a_threshold_of_minus_infinity_is_shown_as_one(symbols):
    threshold_H = symbols.blocks()[0].router.scores.threshold_H
    before = threshold_H.clone()
    threshold_H[:] = -torch.inf
    firing = read_expert(symbols, 1, DENSE, NAMES, VOCABULARY).firing
    threshold_H.copy_(before)
    assert firing.count("> -oo") == HEADS


def test_a_logic_rule_names_literals_and_the_tokens_of_an_experts_own_set(symbols):
    reading = read_expert(symbols, 0, LOGIC, NAMES, VOCABULARY)
    own = "token[-1] in {'\\n', 't'}"
    assert literal_name(symbols.blocks()[0].moe, 1, NAMES, VOCABULARY) == own
    assert reading.rule == sympy.And(sympy.Symbol("letters"), sympy.Not(sympy.Symbol(own)))
    assert reading.firing == f"letters & ~{own}"


def test_the_logic_rule_is_true_where_the_model_fires(symbols):
    tokens_BT = torch.tensor([list((TEXT * 2).encode())])
    context_ON = context_of(tokens_BT, 2)
    token_P, _ = symbols.blocks()[0].moe.logic_firings(torch.tensor([LOGIC]), context_ON)
    text = TEXT * 2
    wanted = [i for i, c in enumerate(text) if c.isalpha() and not (i > 0 and text[i - 1] in "t\n")]
    assert token_P.tolist() == wanted


def test_a_rule_of_several_gates_is_read_whole_and_is_true_where_the_model_fires(symbols):
    experts = symbols.blocks()[0].moe
    experts.tier_E[DROPPED] = Tier.T3
    try:
        reading = read_expert(symbols, 0, DROPPED, NAMES, VOCABULARY)
        context_ON = context_of(torch.randint(256, (1, 3000), generator=torch.Generator().manual_seed(9)), 2)
        context_ON[:, :1500] = context_of(torch.tensor([list((TEXT * 40).encode()[:1500])]), 2)
        token_P, _ = experts.logic_firings(torch.tensor([DROPPED]), context_ON)
        value_LN = experts.literals.values(context_ON)
    finally:
        experts.tier_E[DROPPED] = Tier.T4
    own, alike = "token[-1] in {'\\n', 't'}", [f"{NAMES[2]} (literal {i})" for i in (2, 3)]
    letters, not_own = sympy.Symbol("letters"), sympy.Not(sympy.Symbol(own))
    assert reading.rule == sympy.And(letters, not_own, sympy.Or(*map(sympy.Symbol, alike)))
    assert r"\wedge" in latex(reading.rule)
    wanted_N = value_LN[0] & ~value_LN[1] & (value_LN[2] | value_LN[3])
    assert 0 < len(token_P) == int(wanted_N.sum())
    assert bool(wanted_N[token_P].all())


def test_literals_that_look_alike_stay_two(symbols):
    assert len(firing_statement(symbols, 0, CONSTANT, NAMES, VOCABULARY).free_symbols) == 2


def test_a_dropped_expert_never_fires(symbols):
    reading = read_expert(symbols, 0, DROPPED, NAMES, VOCABULARY)
    assert (reading.tier, reading.firing, reading.rule) == (Tier.T4, "never", sympy.false)


@pytest.mark.parametrize("expert", [1, 5, SPLINE, LOGIC])
def test_latex_sets_literals_as_text_and_has_balanced_braces(symbols, expert):
    reading = read_expert(symbols, 0, expert, NAMES, VOCABULARY)
    for part in (reading.rule, reading.magnitude, reading.function, reading.argument):
        written = latex(part).replace("\\{", "").replace("\\}", "")
        assert written.count("{") == written.count("}")
    if expert == LOGIC:
        assert r"\text{letters}" in latex(reading.rule)
        assert r"\text{token[-1] in \{'\textbackslash{}n', 't'\}}" in latex(reading.rule)
    else:
        assert r"A^{0}_{" in latex(reading.rule)


@pytest.mark.parametrize(
    ("layer", "expert", "range_of"), [(2, 0, "0 to 1"), (-1, 0, "0 to 1"), (0, E, f"0 to {E - 1}")]
)
def test_a_layer_or_expert_that_is_not_there_is_told_with_the_range(symbols, layer, expert, range_of):
    with pytest.raises(ValueError, match=range_of):
        read_expert(symbols, layer, expert, NAMES, VOCABULARY)


def test_literals_without_their_names_are_refused(symbols):
    with pytest.raises(ValueError, match="4 literals and 2 names"):
        firing_statement(symbols, 0, LOGIC, NAMES[:2], VOCABULARY)


def test_firings_add_up_to_the_layers_output(symbols):
    tokens_BT = torch.randint(256, (2, 15), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        trace = symbols.trace(tokens_BT)
    experts = symbols.blocks()[1].moe
    fired = firings(experts, trace.expert_inputs[1], trace.routings[1])
    added_PD = fired.strength_P[:, None] * experts.v.rows(fired.expert_P)
    sum_ND = torch.zeros(30, D).index_add(0, fired.token_P, added_PD)
    torch.testing.assert_close(sum_ND, trace.expert_outputs[1], rtol=1e-4, atol=1e-5)
    energy_E = torch.zeros(E).index_add(0, fired.expert_P, added_PD.square().sum(1))
    torch.testing.assert_close(output_energies(experts, fired), energy_E)


def test_a_score_is_the_sum_of_features_that_it_is_said_to_be(symbols):
    features = 5
    update = {"score_features": features, "score_terms": 3}
    peer = PeerSpec.model_validate({**symbols.spec.experts.peer.model_dump(), **update})
    spec = symbols.spec.experts.model_copy(update={"peer": peer})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(6)
        sparse = LanguageModel(ModelSpec(transformer=symbols.spec.transformer, experts=spec)).eval()
        router = sparse.blocks()[0].router.scores
        router.query.weight[torch.rand(router.query.weight.shape) < 0.4] = 0
        x_ND = torch.randn(9, D)
        axes, read_NR = dict(zip("AB", router.scores(x_ND), strict=True)), router.features(x_ND)
    keys = [("A", 0, 1), ("A", 1, 2), ("B", 0, 0), ("B", 1, 1)]
    sums = score_sums(sparse, 1, keys)
    for (axis, head, index), score in zip(keys, sums, strict=True):
        assert list(map(abs, score.terms.values())) == sorted(map(abs, score.terms.values()), reverse=True)
        assert all(score.terms.values())
        found_N = sum(weight * read_NR[:, feature] for feature, weight in score.terms.items()) + score.intercept
        assert_close(found_N, axes[axis][:, head, index], 1e-5)
        assert str(score).startswith(f"{axis.lower()}^{head}_{index} = ")
    heaviest = max((abs(weight), feature) for score in sums for feature, weight in score.terms.items())[1]
    assert heaviest_features(sums, 2)[0] == f"f_{heaviest}"
    assert score_sums(symbols, 1, keys) == []


def test_a_literal_that_is_called_as_another_is_numbered_stays_another(symbols):
    """Two are called q, and a third what the first of them would be told apart by."""
    experts = symbols.blocks()[0].moe
    circuit = Circuit(inputs=(0, 1, 2), gates=((1, 0, 1), (1, 3, 2)))
    names = rule_names(experts, circuit, ["q", "q", "q (literal 0)", "z"], VOCABULARY)
    assert len(set(names)) == 3
