"""Experts read out: expressions and KANs say what the tables compute, statements say when, commands show it all."""

import json
import re
import subprocess
import sys

import pytest
import sympy
import torch

from artifacts import Circumstance, Recipe, Store
from kernels.symbol_table.tables import context_of
from pipeline.corpus import Corpus, CorpusSpec, make_split
from pipeline.corpus_tokenizer import ByteTokenizer
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer import PeerSpec
from pipeline.models.symbols import SymbolSpec
from pipeline.models.transformer import TransformerSpec
from pipeline.symbolic import kan_folder
from pipeline.symbolic.__main__ import main
from pipeline.symbolic._pykan import pykan
from pipeline.symbolic.functions import BY_NAME, CATALOGUE, SPLINE_CODE
from pipeline.symbolic.names import Name, Names, Said
from pipeline.symbolic.reading import (
    arguments,
    coordinates_by_size,
    firing_statement,
    firings,
    function_values,
    heaviest_features,
    latex,
    literal_name,
    magnitude_expression,
    magnitudes_by_formula,
    output_energies,
    read_expert,
    router_block,
    score_keys,
    score_sums,
    symbol_experts,
)
from pipeline.symbolic.tiers import Tier
from tests.pictures import assert_picture
from tests.tolerances import assert_close, relative_rms

# N tokens, D model width, E experts, P pairs

D, KEYS, HEADS = 14, 3, 2
DENSE, SPLINE = 0, len(CATALOGUE) + 1
LOGIC, CONSTANT, DROPPED = SPLINE + 1, SPLINE + 2, SPLINE + 3
E = DROPPED + 4
NAMES = ["letters", f"own set of expert {LOGIC}, token[-1]", "token[0] is '\ufffd'", "token[0] is '\ufffd'"]
VOCABULARY = [ByteTokenizer().decode([token]) for token in range(256)]
TEXT = "the cat sat on the mat, and the dog ran after 27 hens\n"


def fill(experts, generator):
    """The first is dense, then each function has one, then a spline, logic twice; the others are dropped."""
    experts.tier_E[:] = Tier.T4
    experts.tier_E[DENSE], experts.tier_E[1:LOGIC] = Tier.T0, Tier.T1
    experts.tier_E[LOGIC], experts.tier_E[CONSTANT] = Tier.T2, Tier.T3
    experts.code_E[:LOGIC] = torch.tensor([4, *(function.code for function in CATALOGUE), SPLINE_CODE])
    experts.code_E[LOGIC] = 8
    experts.scale_E[:] = torch.randn(E, generator=generator)
    experts.scale_E[DENSE], experts.scale_E[SPLINE] = 1, 1
    experts.offset_E[1:SPLINE] = torch.randn(SPLINE - 1, generator=generator)
    experts.intercept_E[:CONSTANT] = torch.randn(CONSTANT, generator=generator)
    experts.index_EK.copy_(torch.stack([torch.randperm(D, generator=generator)[:4] for _ in range(E)]))
    experts.coefficient_EK.copy_(torch.randn(E, 4, generator=generator))
    experts.coefficient_EK[:, 3] = 0
    experts.dense_u_FD.copy_(torch.randn(1, D, generator=generator))
    experts.spline_low_W[:], experts.spline_high_W[:] = -1.25, 0.5
    experts.spline_coefficient_WK.copy_(torch.randn(1, 11, generator=generator))
    experts.gate_G[:3] = torch.tensor([2, 7, 1])
    experts.wire_a_G[:3], experts.wire_b_G[:3] = torch.tensor([0, 2, 4]), torch.tensor([1, 3, 5])
    experts.rule_E[LOGIC], experts.rule_E[CONSTANT], experts.rule_E[DROPPED] = 0, 1, 2
    experts.member_LV[0] = torch.tensor([text.isalpha() for text in VOCABULARY])
    experts.member_LV[1, [ord("t"), ord("\n")]] = True
    experts.member_LV[2, 200] = experts.member_LV[3, ord("a")] = True
    experts.literal_offset_L[1] = 1
    experts.v.set(
        torch.randint(-7, 8, (E, D), generator=generator).to(torch.int8), torch.rand(E, generator=generator).half()
    )
    experts.check()


@pytest.fixture(scope="module")
def model():
    """Two blocks that share a router."""
    peer = PeerSpec(
        precision="int4", num_keys=KEYS, num_experts=E, num_heads=HEADS, sub_keys="identity", d_key=KEYS,
        query_norm=False, gate="jumprelu", pairs_per_head=2, active_keys=2, activation="relu2", router_group=2,
    )  # fmt: skip
    spec = SymbolSpec(
        peer=peer,
        vocab_size=256,
        coordinates=4,
        places=2,
        num_dense=(1, 1),
        num_literals=(4, 4),
        num_gates=(3, 3),
        num_splines=(1, 1),
    )
    shape = TransformerSpec(d_model=D, num_layers=2, num_heads=1, num_kv_heads=1, vocab_size=256)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(4)
        model = LanguageModel(ModelSpec(transformer=shape, experts=spec)).eval()
        model.blocks()[0].router.scores.threshold_H.copy_(torch.tensor([-2.5004, -3.2496]))
        for layer in range(2):
            fill(model.blocks()[layer].moe, torch.Generator().manual_seed(layer))
    return model


@pytest.mark.parametrize("expert", range(DROPPED))
def test_the_unrounded_expression_is_the_magnitude_that_the_tables_compute(model, expert):
    experts = model.blocks()[1].moe
    x_ND = torch.randn(67, D, generator=torch.Generator().manual_seed(expert))
    token_N = torch.arange(67)
    wanted_N = experts.magnitudes(x_ND, token_N, torch.full((67,), expert))
    found_N = magnitudes_by_formula(experts, expert, x_ND)
    torch.testing.assert_close(found_N.float(), wanted_N, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("expert", range(LOGIC))
def test_the_function_of_the_argument_is_the_magnitude_that_the_tables_compute(model, expert):
    experts = model.blocks()[1].moe
    x_ND = torch.randn(67, D, generator=torch.Generator().manual_seed(expert))
    wanted_N = experts.magnitudes(x_ND, torch.arange(67), torch.full((67,), expert))
    found_N = function_values(experts, expert, arguments(experts, expert, x_ND))
    torch.testing.assert_close(found_N, wanted_N, rtol=1e-4, atol=1e-5)


def test_the_scores_and_coordinates_of_an_expert_are_those_of_its_rule_and_formula(model):
    block, keys = score_keys(model, 1, 11)
    rule = {str(symbol) for symbol in firing_statement(model, 1, 11, NAMES, VOCABULARY).free_symbols}
    assert block == router_block(model, 1) == 0
    assert {f"{axis}^{head}_{key}" for axis, head, key in keys} == rule
    experts = symbol_experts(model, 1)
    size = dict(zip(experts.index_EK[11].tolist(), experts.coefficient_EK[11].abs().tolist(), strict=True))
    wanted = sorted((index for index in size if size[index] > 0), key=lambda index: -size[index])
    assert coordinates_by_size(experts, 11) == wanted


def test_the_expression_of_a_spline_is_a_piecewise_cubic_that_is_constant_outside(model):
    experts = model.blocks()[1].moe
    shown = magnitude_expression(experts, SPLINE)
    assert isinstance(shown, sympy.Piecewise)
    assert len(shown.args) == 1 + 8 + 1
    x_ND = torch.zeros(2, D)
    index, coefficient = int(experts.index_EK[SPLINE, 0]), float(experts.coefficient_EK[SPLINE, 0])
    x_ND[:, index] = torch.tensor([50.0, 5000.0]) / coefficient
    high, higher = magnitudes_by_formula(experts, SPLINE, x_ND).tolist()
    assert high == higher


def test_a_shown_formula_is_rounded_and_names_only_its_coordinates(model):
    experts = model.blocks()[0].moe
    shown = magnitude_expression(experts, 9, digits=3)
    named = {f"x_{index}" for index in experts.index_EK[9, :3].tolist()}
    assert {str(symbol) for symbol in shown.free_symbols} == named
    assert all(number == sympy.Float(float(f"{float(number):.3g}"), 3) for number in shown.atoms(sympy.Float))
    assert len(magnitude_expression(experts, DENSE).free_symbols) == D
    assert magnitude_expression(experts, CONSTANT, digits=None) == float(experts.scale_E[CONSTANT])


@pytest.mark.parametrize("layer", [0, 1])
def test_an_exact_firing_rule_compares_the_experts_scores_with_the_thresholds_of_the_router_it_obeys(model, layer):
    experts = symbol_experts(model, layer)
    expert = 11
    cell = int(experts.index.cell_of_experts()[expert])
    row, column = cell // KEYS, cell % KEYS
    wanted = [f"A^{h}_{row} + B^{h}_{column} > {limit}" for h, limit in enumerate(("-2.5", "-3.25"))]
    reading = read_expert(model, layer, expert, NAMES, VOCABULARY)
    assert sorted(reading.firing.split(" or ")) == sorted(wanted)
    assert reading.tier == Tier.T1
    assert reading.num_coordinates == 3


def test_the_exact_rule_is_true_where_the_model_fires(model):
    tokens_BT = torch.randint(256, (3, 15), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        trace = model.trace(tokens_BT)
        row_NHI, column_NHJ = model.blocks()[0].router.scores.log_gates(trace.expert_inputs[0])
    fired = firings(model.blocks()[0].moe, trace.expert_inputs[0], trace.routings[0])
    for expert in (DENSE, 5, 11):
        rule = firing_statement(model, 0, expert, NAMES, VOCABULARY, digits=None)
        where = set(fired.token_P[fired.expert_P == expert].tolist())
        for token in range(tokens_BT.numel()):
            values = {}
            for symbol in rule.free_symbols:
                head, key = map(int, str(symbol)[2:].split("_"))
                score = float((row_NHI if str(symbol)[0] == "A" else column_NHJ)[token, head, key])
                values[symbol] = sympy.Float(score) if score > float("-inf") else -sympy.oo
            assert bool(rule.subs(values)) == (token in where)


def test_a_threshold_of_minus_infinity_is_shown_as_one(model):
    threshold_H = model.blocks()[0].router.scores.threshold_H
    before = threshold_H.clone()
    threshold_H[:] = -torch.inf
    firing = read_expert(model, 1, DENSE, NAMES, VOCABULARY).firing
    threshold_H.copy_(before)
    assert firing.count("> -oo") == HEADS


def test_a_logic_rule_names_literals_and_the_tokens_of_an_experts_own_set(model):
    reading = read_expert(model, 0, LOGIC, NAMES, VOCABULARY)
    own = "token[-1] in {'\\n', 't'}"
    assert literal_name(model.blocks()[0].moe, 1, NAMES, VOCABULARY) == own
    assert reading.rule == sympy.And(sympy.Symbol("letters"), sympy.Not(sympy.Symbol(own)))
    assert reading.firing == f"letters & ~{own}"


def test_the_logic_rule_is_true_where_the_model_fires(model):
    tokens_BT = torch.tensor([list((TEXT * 2).encode())])
    context_ON = context_of(tokens_BT, 2)
    token_P, _ = model.blocks()[0].moe.logic_firings(torch.tensor([LOGIC]), context_ON)
    text = TEXT * 2
    wanted = [i for i, c in enumerate(text) if c.isalpha() and not (i > 0 and text[i - 1] in "t\n")]
    assert token_P.tolist() == wanted


def test_a_rule_of_several_gates_is_read_whole_and_is_true_where_the_model_fires(model):
    experts = model.blocks()[0].moe
    experts.tier_E[DROPPED] = Tier.T3
    try:
        reading = read_expert(model, 0, DROPPED, NAMES, VOCABULARY)
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


def test_literals_that_look_alike_stay_two(model):
    assert len(firing_statement(model, 0, CONSTANT, NAMES, VOCABULARY).free_symbols) == 2


def test_a_dropped_expert_never_fires(model):
    reading = read_expert(model, 0, DROPPED, NAMES, VOCABULARY)
    assert (reading.tier, reading.firing, reading.rule) == (Tier.T4, "never", sympy.false)


@pytest.mark.parametrize("expert", [1, 5, SPLINE, LOGIC])
def test_latex_sets_literals_as_text_and_has_balanced_braces(model, expert):
    reading = read_expert(model, 0, expert, NAMES, VOCABULARY)
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
def test_a_layer_or_expert_that_is_not_there_is_told_with_the_range(model, layer, expert, range_of):
    with pytest.raises(ValueError, match=range_of):
        read_expert(model, layer, expert, NAMES, VOCABULARY)


def test_literals_without_their_names_are_refused(model):
    with pytest.raises(ValueError, match="4 literals and 2 names"):
        firing_statement(model, 0, LOGIC, NAMES[:2], VOCABULARY)


def test_firings_add_up_to_the_layers_output(model):
    tokens_BT = torch.randint(256, (2, 15), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        trace = model.trace(tokens_BT)
    experts = model.blocks()[1].moe
    fired = firings(experts, trace.expert_inputs[1], trace.routings[1])
    added_PD = fired.strength_P[:, None] * experts.v.rows(fired.expert_P)
    sum_ND = torch.zeros(30, D).index_add(0, fired.token_P, added_PD)
    torch.testing.assert_close(sum_ND, trace.expert_outputs[1], rtol=1e-4, atol=1e-5)
    energy_E = torch.zeros(E).index_add(0, fired.expert_P, added_PD.square().sum(1))
    torch.testing.assert_close(output_energies(experts, fired), energy_E)


def quantity_names():
    """Of all scores of the router and all coordinates of both blocks, each naming itself."""
    nulls = {"null_f1": 0.125, "permuted_f1": 0.25, "rate": 0.125, "top_tokens": (), "contexts": ()}
    keys = [
        ("score", 0, axis, head, key, 0.5 + key / 10) for axis in "AB" for head in range(HEADS) for key in range(KEYS)
    ]
    keys += [("coordinate", block, "x", None, index, 0.75) for block in range(2) for index in range(D)]
    return Names(
        names=tuple(
            Name(
                kind=kind, block=block, axis=axis, head=head, index=index, f1=f1,
                statement="whole", brief=f"says {axis} {head} {index} of block {block}", **nulls,
            )
            for kind, block, axis, head, index, f1 in keys
        ),
        experts=(Said(block=1, expert=11, statement="cur='e'", f1=0.625, null_f1=0.03125),),
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(model, tmp_path_factory):
    """A corpus and two symbols models made from it: one of before scores had names, and the latest, with names."""
    store = Store(tmp_path_factory.mktemp("reading") / "store")
    tokenizer = ByteTokenizer()
    split = make_split([(0, TEXT * 12)], tokenizer)
    spec = CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("text",))
    corpus = Corpus(spec, train=split, held_out=split, tokenizer=tokenizer)

    def publish(stage, value, files, version=1, **inputs):
        return store.publish(
            recipe=Recipe(stage=stage, stage_version=version, config={}, seed=0, inputs=inputs),
            kind=value.kind,
            spec=value.spec.model_dump(mode="json"),
            tensors=value.to_tensors(),
            metrics={},
            files=files,
            circumstance=Circumstance.now(device="cpu", seconds=0.0),
        )

    corpus_id = publish("prepare-corpus", corpus, {})
    files = {"literals.json": json.dumps([NAMES, NAMES]).encode()}
    publish("distill-symbols", model, files, version=2, corpus=corpus_id)
    files["names.json"] = quantity_names().model_dump_json().encode()
    publish("distill-symbols", model, files, version=3, corpus=corpus_id)
    return store


def show(store, capsys, *arguments):
    code = main(["show", *arguments, "--store", str(store.root)])
    return code, *capsys.readouterr()


def test_show_prints_rule_formula_and_contexts_of_a_logic_expert(store, capsys):
    code, out, err = show(store, capsys, "latest", "--layer", "0", "--expert", str(LOGIC), "--latex")
    assert (code, err) == (0, "")
    for piece in ("T2, logic and formula", "letters & ~token[-1] in {'\\n', 't'}", "tanh(z)", "where z is", "LaTeX"):
        assert piece in out
    assert "most on the last token of" in out
    contexts = [line.split(None, 1)[1] for line in out.splitlines()[-8:]]
    assert all(eval(context)[-1].isalpha() for context in contexts)


@pytest.mark.parametrize("expert", range(DROPPED + 1))
def test_show_shows_every_expert(store, capsys, expert):
    code, out, err = show(store, capsys, "latest", "--layer", "1", "--expert", str(expert))
    assert (code, err) == (0, "")
    assert ("never" in out) == (expert == DROPPED)


def test_show_of_a_dense_expert_names_its_largest_terms(store, capsys):
    _, out, _ = show(store, capsys, "latest", "--layer", "0", "--expert", "0")
    assert "T0, exact, dense u" in out
    assert f"coordinates  {D}" in out
    assert "A^0_0 + B^0_0 > -2.5 or A^1_0 + B^1_0 > -3.25" in out


def test_show_without_an_expert_counts_tiers_and_ranks_experts(store, capsys):
    code, out, err = show(store, capsys, "latest")
    assert (code, err) == (0, "")
    assert "layer 0" in out
    assert "layer 1" in out
    lines = [line.split() for line in out.splitlines()]
    counts = {line[0]: int(line[1]) for line in lines if line and line[0] in Tier.__members__}
    assert counts == {"T0": 1, "T1": SPLINE, "T2": 1, "T3": 1, "T4": 4}
    code, one, _ = show(store, capsys, "latest", "--layer", "1")
    assert code == 0
    assert "layer 0" not in one


def test_show_names_the_scores_and_coordinates_that_an_expert_reads(store, model, capsys):
    code, out, err = show(store, capsys, "latest", "--layer", "1", "--expert", "11")
    assert (code, err) == (0, "")
    named = [line.split(None, 1) for line in out.splitlines() if "says" in line]
    _, keys = score_keys(model, 1, 11)
    scores = [(f"{axis}^{head}_{key}", f"says {axis} {head} {key} of block 0") for axis, head, key in keys]
    indices = coordinates_by_size(symbol_experts(model, 1), 11)
    coordinates = [(f"x_{index}", f"says x None {index} of block 1") for index in indices]
    assert [(symbol, text.split("  ")[0]) for symbol, text in named] == scores + coordinates
    assert "(F1 0.75; null 0.12, permuted 0.25)" in named[-1][1]
    assert "by tokens    cur='e'  (F1 0.62; null 0.031)" in out
    assert "by tokens" not in show(store, capsys, "latest", "--layer", "1", "--expert", "12")[1]


def test_show_of_a_layer_names_the_scores_that_tokens_say_best(store, capsys):
    _, out, _ = show(store, capsys, "latest", "--layer", "1")
    named = [line.split()[0] for line in out.splitlines() if "says" in line]
    assert named[:4] == ["A^0_2", "A^1_2", "B^0_2", "B^1_2"]


def test_an_artifact_of_before_scores_had_names_is_shown_without_them(store, capsys):
    older = min(store.manifests(), key=lambda m: (m.kind != "symbols", m.lineage.stage_version)).id
    for asked in (("--layer", "1", "--expert", "11"), ("--layer", "0", "--expert", str(LOGIC)), ("--layer", "0")):
        code, out, err = show(store, capsys, older, *asked)
        assert (code, err) == (0, "")
        assert "says" not in out
        _, newer, _ = show(store, capsys, "latest", *asked)
        kept = [line for line in newer.splitlines() if "says" not in line and "tokens" not in line]
        assert set(kept[1:]) <= set(out.splitlines()) | {""}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("latest", "--layer", "2"), "layer 2 is not in this model, which has the layers 0 to 1"),
        (
            ("latest", "--layer", "0", "--expert", f"{E}"),
            f"expert {E} is not in layer 0, which has the experts 0 to {E - 1}",
        ),
        (
            ("latest", "--layer", "0", "--expert", "-1"),
            f"expert -1 is not in layer 0, which has the experts 0 to {E - 1}",
        ),
        (("latest", "--expert", "3"), "give --layer too"),
        (("prepare-corpus", "--layer", "0"), "a 'symbols' was needed here"),
        (("nothing-like-it", "--layer", "0"), "nothing-like-it"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(store, capsys, arguments, sentence):
    code, out, err = show(store, capsys, *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_store_that_is_not_there_is_told(tmp_path, capsys):
    code, out, err = show(Store(tmp_path / "none"), capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_an_artifact_whose_rules_are_one_gate_an_expert_is_refused_with_what_to_do(model, tmp_path, capsys):
    """Tables of before stage version 4: gate_E, literal_a_E and literal_b_E instead of a circuit."""
    spec = model.spec.model_dump(mode="json")
    del spec["experts"]["num_gates"]
    new = ("gate_G", "wire_a_G", "wire_b_G", "rule_E")
    tensors = {name: tensor for name, tensor in model.to_tensors().items() if not name.endswith(new)}
    tensors |= {f"model.layers.{layer}.moe.gate_E": torch.zeros(E, dtype=torch.uint8) for layer in range(2)}
    older = Store(tmp_path / "store")
    older.publish(
        recipe=Recipe(stage="distill-symbols", stage_version=3, config={}, seed=0, inputs={}),
        kind="symbols", spec=spec, tensors=tensors, metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )  # fmt: skip
    code, out, err = show(older, capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "(experts.symbols.num_gates: Field required)" in err
    assert "has a spec that this version does not read" in err
    assert "make it again" in err


LIES = [
    ("gate_G", 1, 16, "gate_G holds 16 at 1, which is outside 0 to 15"),
    ("wire_b_G", 2, 7, "wire_b_G holds 7 at 2, which is outside 0 to 6"),
    ("wire_a_G", 0, 5, "wire_a_G holds 5 at 0, which is a cycle"),
    ("wire_b_G", 1, 5, "wire_b_G holds 5 at 1, which is a cycle"),
    ("rule_E", 4, 3, "rule_E holds 3 at 4, which is outside 0 to 2"),
    ("code_E", 3, len(BY_NAME), f"code_E holds {len(BY_NAME)} at 3, which is no function"),
    ("coefficient_EK", 9, float("nan"), "coefficient_EK holds nan at 9, which is not finite"),
    ("scale_E", 2, float("inf"), "scale_E holds inf at 2, which is not finite"),
]


@pytest.mark.parametrize(("table", "at", "value", "message"), LIES)
def test_an_artifact_with_a_wrong_entry_is_refused_with_its_place(model, tmp_path, capsys, table, at, value, message):
    tensors = {name: tensor.clone() for name, tensor in model.to_tensors().items()}
    tensors[f"model.layers.1.moe.{table}"].view(-1)[at] = value
    damaged = Store(tmp_path / "store")
    damaged.publish(
        recipe=Recipe(stage="distill-symbols", stage_version=4, config={}, seed=0, inputs={}),
        kind="symbols", spec=model.spec.model_dump(mode="json"), tensors=tensors, metrics={}, files={},
        circumstance=Circumstance.now(device="cpu", seconds=0.0),
    )  # fmt: skip
    code, out, err = show(damaged, capsys, "latest")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"layer 1, symbolic experts: {message}" in err
    assert "make the artifact again" in err


CONSTANT_FUNCTION = 1 + BY_NAME["constant"].code


@pytest.mark.parametrize("expert", [e for e in range(CONSTANT) if e != CONSTANT_FUNCTION])
def test_the_kan_of_an_expert_is_its_formula_beyond_a_splines_range_too(model, expert):
    experts = model.blocks()[1].moe
    x_ND = 2 * torch.randn(301, D, generator=torch.Generator().manual_seed(expert))
    with torch.no_grad(), pykan() as kan:
        made = kan_folder.build(kan, experts, expert)
        columns = sorted(coordinates_by_size(experts, expert))
        found_N = made(x_ND[:, columns]).detach()[:, 0]
        assert made.depth == (3 if expert == SPLINE else 2)
        assert made.width_in[0] == len(columns)
    assert_close(found_N, function_values(experts, expert, arguments(experts, expert, x_ND)), 1e-5)


BY_KANPILER = ("identity", "square", "tanh", "gaussian", "cube", "fourth_power", "fifth_power", "sin", "cos", "arctan")


@pytest.mark.parametrize("name", BY_KANPILER)
def test_kanpilers_kan_of_the_expression_is_the_same_where_it_knows_the_function(model, name):
    experts, expert = model.blocks()[1].moe, 1 + BY_NAME[name].code
    expression = magnitude_expression(experts, expert, digits=None)
    symbols = sorted(expression.free_symbols, key=lambda symbol: int(str(symbol)[2:]))
    x_NK = torch.randn(97, len(symbols), generator=torch.Generator().manual_seed(0))
    with pykan() as kan:
        theirs_N1 = kan.kanpiler(symbols, expression)(x_NK).detach()
        ours_N1 = kan_folder.build(kan, experts, expert)(x_NK).detach()
    assert_close(ours_N1, theirs_N1, 2e-5)


@pytest.mark.parametrize("name", ["relu", "relu2", "clipped_exp", "abs", "gelu"])
def test_kanpiler_fails_or_says_something_else_of_functions_that_it_does_not_know(model, name):
    """Why KANs are built edge by edge; when this fails, kanpiler has learnt them."""
    experts, expert = model.blocks()[1].moe, 1 + BY_NAME[name].code
    expression = magnitude_expression(experts, expert, digits=None)
    symbols = sorted(expression.free_symbols, key=lambda symbol: int(str(symbol)[2:]))
    x_NK = torch.randn(97, len(symbols), generator=torch.Generator().manual_seed(0))
    with pykan() as kan:
        if name not in ("abs", "gelu"):
            with pytest.raises(IndexError):
                kan.kanpiler(symbols, expression)
        else:
            theirs_N1 = kan.kanpiler(symbols, expression)(x_NK).detach()
            assert relative_rms(theirs_N1, kan_folder.build(kan, experts, expert)(x_NK).detach()) > 0.1


def blocks_of(readme):
    """The indented lines of Python in a README, section by section."""
    parts = re.split(r"^## ", readme, flags=re.MULTILINE)[1:]
    return ["\n".join(line[4:] for line in part.splitlines() if line.startswith("    ")) for part in parts]


@pytest.mark.parametrize("expert", [DENSE, 1 + BY_NAME["relu2"].code, 1 + BY_NAME["signed_root"].code, SPLINE, LOGIC])
def test_the_folder_of_a_kan_is_loaded_by_three_lines_edited_and_refitted_by_plain_pykan(
    store, model, tmp_path, capsys, expert
):
    folder = tmp_path / "made" / "kan"
    arguments_ = ["kan", "latest", "--layer", "1", "--expert", str(expert), "--to", str(folder)]
    assert main([*arguments_, "--store", str(store.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "see its README.md" in out
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "firings.pt", "kan_cache_data", "kan_config.yml", "kan_functions.py", "kan_state", "plot.png",
    }  # fmt: skip
    assert_picture((folder / "plot.png").read_bytes())
    load, look, edit = blocks_of((folder / "README.md").read_text())
    assert len(load.splitlines()) == 3
    probe = "torch.save(model(data['train_input']).detach(), 'found.pt')"
    code = f"import matplotlib; matplotlib.use('Agg')\n{load}\n{look}\n{probe}\n{edit}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "x_1" in done.stdout.splitlines()[-1]
    experts, data = model.blocks()[1].moe, torch.load(folder / "firings.pt")
    x_SD = torch.zeros(len(data["train_input"]), D)
    x_SD[:, sorted(coordinates_by_size(experts, expert))] = data["train_input"]
    wanted_S = function_values(experts, expert, arguments(experts, expert, x_SD))
    assert_close(torch.load(folder / "found.pt")[:, 0], wanted_S, 1e-5)
    assert_close(data["train_label"][:, 0], wanted_S)
    assert (folder / "figures").is_dir()
    assert not (folder / "model").exists()


@pytest.mark.parametrize(
    ("expert", "message"),
    [(CONSTANT, "adds a constant"), (CONSTANT_FUNCTION, "adds a constant"), (DROPPED, "was dropped")],
)
def test_an_expert_without_a_formula_and_a_full_folder_are_refused_in_one_sentence(
    store, tmp_path, capsys, expert, message
):
    def command(expert, folder):
        given = ["kan", "latest", "--layer", "0", "--expert", str(expert), "--to", str(folder)]
        return main([*given, "--store", str(store.root)])

    assert command(expert, tmp_path / "new") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").write_text("")
    assert command(DENSE, tmp_path) == 2
    assert "is no empty folder" in capsys.readouterr().err


def test_a_score_is_the_sum_of_features_that_it_is_said_to_be(model):
    features = 5
    update = {"score_features": features, "score_terms": 3}
    peer = PeerSpec.model_validate({**model.spec.experts.peer.model_dump(), **update})
    spec = model.spec.experts.model_copy(update={"peer": peer})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(6)
        sparse = LanguageModel(ModelSpec(transformer=model.spec.transformer, experts=spec)).eval()
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
        assert str(score).startswith(f"{axis}^{head}_{index} = ")
    heaviest = max((abs(weight), feature) for score in sums for feature, weight in score.terms.items())[1]
    assert heaviest_features(sums, 2)[0] == f"f_{heaviest}"
    assert score_sums(model, 1, keys) == []
