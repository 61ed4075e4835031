"""The options of a block's experts and the choice among them: each errs as much as it promises, and no more."""

import pytest
import torch

from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import random_windows
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic import tiers as tiers_of_experts
from pipeline.symbolic.formulas.fitting import fit_formulas
from pipeline.symbolic.formulas.kan_formulas import fit_kans, worth_trying
from pipeline.symbolic.recording import record
from pipeline.symbolic.rules import search as rules
from pipeline.symbolic.rules.literals import build_literals
from pipeline.symbolic.showing.firing_rules import rule_circuit
from pipeline.symbolic.tiers import Options, Tier
from pipeline.symbolic.writing.assembly import fit_block
from pipeline.symbolic.writing.held_out import statements_on, worth_on
from pipeline.symbolic.writing.replacement import BLOCK_CHECK_TOKENS, shortest, symbol_model
from stages.distill_symbols import DistillSymbolsConfig
from tests.tiny_int4 import EXPERTS, LAYERS, sparse_int4, trained_int4, words_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return words_corpus()


@pytest.fixture(scope="module")
def int4(corpus) -> LanguageModel:
    return trained_int4(corpus)


@pytest.fixture(scope="module")
def sparse(corpus, int4):
    return sparse_int4(corpus, int4)


LADDER = (1, 4)
OPTIONS = {
    "exact": 0, "known function": 1, "catalogue function": 5, "spline": 6,
    "gate and formula": 7, "gate": 8, "chain and formula": 9, "chain": 10, "threshold and formula": 11, "threshold": 12,
    "tree and formula": 13, "tree": 14, "net and formula": 15, "net": 16, "none": 17,
}  # fmt: skip
WITH_RULES = range(7, 17)


def fitted_block(corpus, model):
    """All options of block 0, and the sample that they were judged on."""
    generator, vocabulary = torch.Generator().manual_seed(3), [corpus.tokenizer.decode([v]) for v in range(256)]
    fit, check = (
        record(model, [random_windows(corpus.train, batch=32, length=32, generator=generator)[0]], places=2, what="")[0]
        for _ in range(2)
    )
    counts_V = torch.bincount(fit.events.context_ON[0], minlength=256)
    literals, names = build_literals(vocabulary, counts_V, places=2, identities=8)
    return fit_block(model, 0, fit, check, literals, names, ladder=LADDER, samples=64, generator=generator), check


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS.keys())
def test_the_error_that_an_option_promises_is_the_error_that_its_tables_make(corpus, int4, monkeypatch, option):
    """Every expert of block 0 takes this option, where it has it, whatever it costs."""
    taken = []

    def take(options: Options, budget: float):
        assert options.bits_EO.shape == (EXPERTS, 18)
        taken.append(torch.where(options.error_EO[:, option] < 1e29, option, 0))
        return taken[-1]

    monkeypatch.setattr(tiers_of_experts, "choose", take)
    monkeypatch.setattr(rules, "WORTH_A_LITERAL_F1", -1.0)  # longer rules for all, however little they add
    fitted, check = fitted_block(corpus, int4)
    held_out = HeldOut(corpus, MeasureConfig(tokens=BLOCK_CHECK_TOKENS), 32)
    block = shortest(fitted, held_out, lost=0.5, least_recovered=1e-9, places=2)
    assert int((taken[-1] == option).sum()) > 2
    assert torch.equal(block.exact_E, taken[-1] == OPTIONS["exact"])
    experts = symbol_model(int4, [block] * LAYERS, vocab_size=256, places=2).blocks()[0].moe
    assert isinstance(experts, SymbolExperts)
    assert len(block.literal_names) == len(experts.member_LV)

    # Gates and magnitudes of every expert on every token, by the record and by the tables.
    true_EN = torch.zeros(EXPERTS, len(check.x_ND))
    true_EN[check.events.expert_P, check.events.token_P] = check.gate_P * torch.relu(check.pre_P).square()
    gate_EN = torch.zeros_like(true_EN)
    gate_EN[check.events.expert_P, check.events.token_P] = check.gate_P
    token_N, found_EN = torch.arange(len(check.x_ND)), torch.zeros_like(true_EN)
    for expert in torch.nonzero(experts.tier_E <= Tier.T2)[:, 0].tolist():
        found_EN[expert] = experts.magnitudes(check.x_ND, token_N, torch.full_like(token_N, expert))
    found_EN[experts.tier_E == Tier.T3] = experts.scale_E[experts.tier_E == Tier.T3, None]
    by_logic_X = torch.nonzero((experts.tier_E == Tier.T2) | (experts.tier_E == Tier.T3))[:, 0]
    token_P, expert_P = experts.logic_firings(by_logic_X, check.events.context_ON)
    gate_EN[by_logic_X] = 0
    gate_EN[expert_P, token_P] = 1
    v2_E = experts.v.rows(torch.arange(EXPERTS)).square().sum(1)
    error_E = (gate_EN * found_EN - true_EN).square().sum(1) * v2_E
    torch.testing.assert_close(block.error_E, error_E, rtol=1e-3, atol=1e-4 * float(block.energy_E.max()) + 1e-9)
    if option in WITH_RULES:
        lengths = [len(rule_circuit(experts, expert).gates) for expert in by_logic_X.tolist()]
        assert block.gates_E[by_logic_X].tolist() == lengths
        assert int(block.gates_E.sum()) == sum(lengths)
        assert max(lengths) > 1 or option < OPTIONS["chain and formula"]
        fires_EN = true_EN.new_zeros(true_EN.shape)
        fires_EN[check.events.expert_P, check.events.token_P] = 1
        both_E = (fires_EN * gate_EN)[by_logic_X].sum(1)
        f1_X = 2 * both_E / (fires_EN[by_logic_X].sum(1) + gate_EN[by_logic_X].sum(1)).clamp(min=1)
        torch.testing.assert_close(block.f1_E[by_logic_X], f1_X)
        assert float(f1_X.mean()) > 0.5


def test_a_kans_error_is_that_of_its_formula_and_is_kept_only_below_all_its_rivals(corpus, int4):
    generator = torch.Generator().manual_seed(3)
    fit, check = (
        record(int4, [random_windows(corpus.train, batch=32, length=32, generator=generator)[0]], places=2, what="")[1]
        for _ in range(2)
    )
    experts = int4.blocks()[1].moe
    others = fit_formulas(experts, fit, check, ladder=(2, 6), samples=96, what="")
    sizes = {e: 6 if e % 2 else 2 for e in fit.events.count_E.topk(14).indices.tolist()}
    kans = fit_kans(experts, fit, check, sizes, others, what="")
    assert kans.tried == 14
    assert 0 < kans.won < 14
    kept = [(f, e) for f in kans.formulas for e in torch.nonzero(f.error_E.isfinite())[:, 0].tolist()]
    assert len(kept) == kans.won
    for formulas, e in kept:
        assert sizes[e] == formulas.num_coordinates == int((formulas.coefficient_EK[e] != 0).sum())
        pairs = slice(int(check.events.start_E1[e]), int(check.events.start_E1[e + 1]))
        z_P = check.x_ND[check.events.token_P[pairs]][:, formulas.index_EK[e]] @ formulas.coefficient_EK[e]
        z_P += formulas.intercept_E[e]
        found_P = formulas.scale_E[e] * torch.relu(z_P).square() + formulas.offset_E[e]
        wrong_P = check.gate_P[pairs] * (found_P - torch.relu(check.pre_P[pairs]).square())
        torch.testing.assert_close(formulas.error_E[e], wrong_P.square().sum(), rtol=1e-3, atol=1e-6)
        for other in others:
            assert other.bits_E[e] > formulas.bits_E[e] or other.error_E[e] > formulas.error_E[e]


def test_kans_are_tried_where_most_output_would_stay_exact_and_where_showcases_come_from():
    tier_E = torch.tensor([Tier.T0, Tier.T1, Tier.T0, Tier.T4, Tier.T0, Tier.T1, Tier.T3, Tier.T0])
    energy_E = torch.tensor([3.0, 8.0, 5.0, 99.0, 1.0, 9.0, 50.0, 0.0])
    coordinates_E = torch.tensor([0, 4, 0, 0, 0, 2, 0, 0])
    assert worth_trying(tier_E, coordinates_E, energy_E, number=2, most=16) == {2: 16, 0: 16, 5: 2}
    assert set(worth_trying(tier_E, coordinates_E, energy_E, number=40, most=16)) == {0, 1, 2, 4, 5}
    assert worth_trying(tier_E, coordinates_E, energy_E, number=0, most=16) == {}


def test_a_sparse_expert_as_it_is_is_an_option_that_says_so(corpus, sparse):
    fitted, _ = fitted_block(corpus, sparse)
    exact_O = torch.tensor([option.exact for option in fitted.listed])
    assert [option.tier for option in fitted.listed if option.exact] == [Tier.T0, Tier.T1]
    assert not fitted.options.error_EO[:, exact_O].any()
    assert fitted.symbols(0.0).exact_E[fitted.energy_E > 0].all()
    assert not fitted.symbols(0.5).exact_E.all()


def test_a_choice_gets_no_more_wrong_than_its_budget(corpus, int4):
    fitted, _ = fitted_block(corpus, int4)
    for lost in DistillSymbolsConfig().budgets:
        block = fitted.symbols(lost)
        assert float(block.error_E.sum()) <= (lost + 1e-6) * float(block.variance_E.sum())


def test_what_symbols_are_worth_on_the_sample_that_chose_them_is_what_they_were_chosen_for(corpus, int4):
    fitted, check = fitted_block(corpus, int4)
    block = fitted.symbols(0.3)
    made = symbol_model(int4, [block] * LAYERS, vocab_size=256, places=2)
    again = worth_on(block, made.blocks()[0].moe, int4.blocks()[0].moe, check)
    assert len(set(block.tier_E.tolist())) > 2
    for name in ("energy_E", "variance_E", "f1_E", "rate_E", "firings_E"):
        torch.testing.assert_close(getattr(again, name), getattr(block, name), msg=name)
    scale = float(block.energy_E.max())
    torch.testing.assert_close(again.error_E, block.error_E, rtol=1e-3, atol=1e-4 * scale)
    statements = statements_on(fitted.statements, check.events)
    torch.testing.assert_close(statements.token_logic.f1_E, fitted.statements.token_logic.f1_E)
    assert sum(len(of.circuits) for of in fitted.statements.rules) > EXPERTS / 2
    for ours, theirs in zip(statements.rules, fitted.statements.rules, strict=True):
        torch.testing.assert_close(ours.f1_E, theirs.f1_E)
