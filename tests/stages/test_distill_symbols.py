"""distill-symbols on a tiny int4 model: what it promises of tiers, budgets, controls and the artifact."""

import itertools
import json
import math
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch
from pydantic import ValidationError

from artifacts.meanings import MODEL
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows, random_windows
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts, SymbolSpec
from pipeline.symbolic.formulas.functions import BY_CODE
from pipeline.symbolic.names.names import Names
from pipeline.symbolic.showing.showcase import BY_ENERGY, BY_LOGIC
from pipeline.symbolic.tiers import Tier
from stages.distill_symbols import DistillSymbolsConfig, distill_symbols
from tests.pictures import assert_picture
from tests.tiny_int4 import EXPERTS, LAYERS, config, sparse_int4, trained_int4, words_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return words_corpus()


@pytest.fixture(scope="module")
def int4(corpus) -> LanguageModel:
    return trained_int4(corpus)


@pytest.fixture(scope="module")
def made(corpus, int4):
    """Loose enough that every kind of option has its chance."""
    return distill_symbols.fn(config(least_r2=0.6, least_recovered=0.05), corpus=corpus, int4=int4)


@pytest.fixture(scope="module")
def exact(corpus, int4):
    """So strict that nothing that fires may err."""
    return distill_symbols.fn(config(least_r2=1.0, least_recovered=0.05), corpus=corpus, int4=int4)


def tiers(output):
    return torch.cat([block.moe.tier_E for block in output.value.blocks()])


def test_metrics_are_finite_and_named(made):
    named = {
        "held_out_loss_nats",
        "loss_increase_nats",
        "loss_recovered",
        "loss_recovered_constant_magnitude",
        "loss_recovered_permuted_firing",
        "loss_recovered_biases_alone",
        "loss_recovered_over_biases",
        "loss_recovered_gate_constant_magnitude_over_biases",
        "readable_energy_share",
        "firing_f1_mean",
        "firing_f1_same_rate_null_mean",
        "r2_energy_weighted",
        "description_bits_per_expert",
        "description_bits_per_expert_exact",
        "experts_per_second",
        "gates_per_rule_mean",
        "rule_f1_mean",
        "rule_f1_single_gate_mean",
        "rule_f1_same_rate_null_mean",
        "rule_f1_permuted_mean",
        "deep_rule_f1_tree_mean",
        "deep_rule_f1_net_mean",
        "deep_rule_won_gate_share",
        "nets_by_difflogic",
    }
    assert named <= made.metrics.keys()
    assert {name: value for name, value in made.metrics.items() if not math.isfinite(value)} == {}
    assert made.metrics.keys() <= MODEL.keys()


def test_shares_of_tiers_sum_to_one_and_are_those_of_the_tables(made):
    for kind in ("expert_share", "energy_share"):
        assert sum(made.metrics[f"{kind}_{tier.name.lower()}"] for tier in Tier) == pytest.approx(1)
    for tier in Tier:
        share = float((tiers(made) == tier).float().mean())
        assert made.metrics[f"expert_share_{tier.name.lower()}"] == pytest.approx(share)
    readable = sum(made.metrics[f"energy_share_{name}"] for name in ("t1", "t2", "t3"))
    assert made.metrics["readable_energy_share"] == pytest.approx(readable)
    assert readable > 0.1


def test_the_best_rules_are_no_worse_than_one_gate_and_better_than_their_null(made):
    figures = made.metrics
    assert figures["rule_f1_mean"] >= figures["rule_f1_single_gate_mean"] > figures["rule_f1_same_rate_null_mean"] + 0.1
    assert 0 < figures["rule_f1_permuted_mean"] < figures["rule_f1_mean"] - 0.1
    assert figures["deep_rule_f1_mean"] >= figures["deep_rule_f1_gate_mean"] - 1e-6
    won = [value for name, value in figures.items() if name.startswith("deep_rule_won_")]
    assert len(won) == 5
    assert sum(won) == pytest.approx(1)


def test_the_r2_bound_holds_and_the_description_is_shorter_than_the_exact_one(made, exact):
    assert made.metrics["r2_energy_weighted"] >= 0.6
    assert made.metrics["description_bits_per_expert"] < exact.metrics["description_bits_per_expert"]
    exact_bits = exact.metrics["description_bits_per_expert_exact"]
    assert exact.metrics["description_bits_per_expert"] <= exact_bits
    assert made.metrics["description_bits_per_expert_exact"] == pytest.approx(exact_bits)


def test_without_an_error_budget_all_that_fires_is_exact_and_the_loss_stays(exact):
    assert exact.metrics["energy_share_t0"] == pytest.approx(1, abs=1e-6)
    assert exact.metrics["readable_energy_share"] == pytest.approx(0, abs=1e-6)
    assert not set(tiers(exact).tolist()) & {Tier.T2, Tier.T3}
    assert exact.metrics["loss_increase_nats"] == pytest.approx(0, abs=1e-4)
    assert exact.metrics["loss_recovered"] == pytest.approx(1, abs=1e-2)
    assert exact.metrics["r2_energy_weighted"] == pytest.approx(1, abs=1e-4)
    assert exact.metrics["firing_f1_mean"] == 1


def test_symbols_recover_more_of_the_loss_than_models_that_know_less(exact):
    recovered = exact.metrics["loss_recovered"]
    assert recovered > exact.metrics["loss_recovered_constant_magnitude"] + 0.05
    assert recovered > exact.metrics["loss_recovered_permuted_firing"] + 0.2
    over = exact.metrics["loss_recovered_over_biases"]
    assert over == pytest.approx(1, abs=1e-2)
    assert over > exact.metrics["loss_recovered_gate_constant_magnitude_over_biases"] + 0.05
    assert exact.metrics["loss_recovered_permuted_firing_over_biases"] < 0.5


def kinds_by_tables(output, int4):
    """How each readable expert is written, by comparing its numbers with the neuron's."""
    kinds = []
    for ours, theirs in zip(output.value.blocks(), int4.blocks(), strict=True):
        e, u_ED = ours.moe, theirs.moe.u.rows(torch.arange(EXPERTS))
        for expert, tier in enumerate(e.tier_E.tolist()):
            found_D = torch.zeros(int4.shape.d_model)
            found_D.index_add_(0, e.index_EK[expert].long(), e.coefficient_EK[expert])
            numbers = [float(table[expert]) for table in (e.scale_E, e.offset_E, e.intercept_E)]
            own = BY_CODE[int(e.code_E[expert])].name == theirs.moe.spec.activation
            if tier in (Tier.T2, Tier.T3):
                kinds.append("rule")
            elif tier != Tier.T1:
                kinds.append("")
            elif own and torch.equal(found_D, u_ED[expert]) and numbers == [1, 0, theirs.moe.bias[expert].item()]:
                kinds.append("verbatim")
            else:
                kinds.append("shortened" if own else "other_function")
    return kinds


@pytest.mark.parametrize("of", ["made", "sparse_made", "sparse_loose"])
def test_copies_of_neurons_are_told_from_formulas(of, int4, sparse, request):
    output = request.getfixturevalue(of)
    kinds = kinds_by_tables(output, int4 if of == "made" else sparse)
    for kind in ("verbatim", "shortened", "other_function", "rule"):
        assert output.metrics[f"{kind}_expert_share"] == pytest.approx(kinds.count(kind) / len(kinds)), kind
    shares = [output.metrics[f"{kind}_energy_share"] for kind in ("verbatim", "shortened", "other_function", "rule")]
    assert sum(shares) == pytest.approx(output.metrics["readable_energy_share"])
    if of == "made":
        assert shares[0] == 0
        assert shares[1] > 0
    if of == "sparse_made":
        assert shares[0] == pytest.approx(1)
    if of == "sparse_loose":
        assert shares[0] > 0
        assert sum(shares[1:]) > 0


def test_the_model_comes_back_from_its_tensors_with_the_same_logits(made, corpus):
    model = made.value
    assert model.kind == "symbols"
    spec = json.loads(json.dumps(model.spec.model_dump(mode="json")))
    again = LanguageModel.restore("symbols", spec, dict(model.to_tensors()), {})
    inputs_BT, _ = random_windows(corpus.train, batch=3, length=21, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert torch.equal(again.eval()(inputs_BT), model(inputs_BT))


def test_the_picture_is_there(made):
    assert_picture(made.files["plot.png"])


def test_kans_are_tried_and_kept_where_they_help(corpus, int4):
    output = distill_symbols.fn(config(kan_experts=6, least_r2=0.9), corpus=corpus, int4=int4)
    tried, won, chosen = (output.metrics[f"kan_experts_{what}"] for what in ("tried", "won", "chosen"))
    assert LAYERS * (6 + 3) >= tried >= won >= chosen >= 0
    assert tried > 4
    assert output.metrics["kan_seconds"] > 0
    without = distill_symbols.fn(config(kan_experts=0, least_r2=0.9), corpus=corpus, int4=int4)
    assert [without.metrics[f"kan_experts_{what}"] for what in ("tried", "won", "chosen")] == [0, 0, 0]
    assert without.metrics["kan_seconds"] == 0


def test_every_literal_of_the_artifact_has_a_name(made):
    names = json.loads(made.files["literals.json"])
    assert isinstance(made.value.spec.experts, SymbolSpec)
    assert tuple(map(len, names)) == made.value.spec.experts.num_literals
    for block in made.value.blocks():
        assert isinstance(block.moe, SymbolExperts)
        block.moe.check("experts")


def test_every_score_and_coordinate_has_a_name_beside_its_nulls(made, int4):
    names = Names.model_validate_json(made.files["names.json"])
    spec = int4.spec.experts
    routers = [layer for layer, block in enumerate(int4.blocks()) if block.router is not None]
    wanted = {
        (layer, f"{axis}^{head}_{key}")
        for layer in routers
        for axis in "AB"
        for head in range(spec.num_heads)
        for key in range(spec.num_keys)
    } | {(layer, f"x_{index}") for layer in range(LAYERS) for index in range(int4.shape.d_model)}
    assert {(name.block, name.symbol) for name in names.names} == wanted
    assert len(names.names) == len(wanted)
    for name in names.names:
        assert all(0 <= figure <= 1 for figure in (name.f1, name.null_f1, name.permuted_f1, name.rate))
        assert name.statement
        assert len(name.brief) <= len(name.statement) + len(" and 1 more")
        assert all(token.count > 0 and token.lift > 0 for token in name.top_tokens)
        assert name.contexts


def test_tokens_say_something_of_every_expert_that_fires(made):
    said = Names.model_validate_json(made.files["names.json"]).experts
    assert len({(s.block, s.expert) for s in said}) == len(said) <= LAYERS * EXPERTS
    assert made.metrics["token_logic_f1_mean"] == pytest.approx(sum(s.f1 for s in said) / len(said))
    assert made.metrics["token_logic_f1_same_rate_null_mean"] == pytest.approx(sum(s.null_f1 for s in said) / len(said))


def test_names_and_token_statements_beat_their_nulls(made):
    names = Names.model_validate_json(made.files["names.json"])
    for kind in ("score", "coordinate"):
        assert made.metrics[f"{kind}_name_f1_mean"] == pytest.approx(names.mean(kind, "f1"))
        assert made.metrics[f"{kind}_name_f1_same_rate_null_mean"] == pytest.approx(names.mean(kind, "null_f1"))
        assert made.metrics[f"{kind}_name_f1_mean"] > made.metrics[f"{kind}_name_f1_permuted_mean"] + 0.1
    assert made.metrics["token_logic_f1_mean"] > made.metrics["token_logic_f1_same_rate_null_mean"] + 0.1
    assert made.metrics["naming_seconds"] > 0


class Page(HTMLParser):
    """Counts elements, and notes what they would fetch."""

    def __init__(self):
        super().__init__()
        self.count, self.fetched, self.open = Counter(), [], []

    def handle_starttag(self, tag, attrs):
        self.count[tag] += 1
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "input", "circle", "path", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "path", "polyline"):
            assert self.open.pop() == tag


def writing_on_held_out(model, corpus) -> int:
    """Experts of all blocks that add anything on the tokens that are reported on."""
    tokens_WT, _ = held_out_windows(corpus.held_out, num_tokens=16_384, length=32)
    with torch.no_grad():
        pairs = [visit.pairs() for visit in model.walk(tokens_WT)]
    return sum(len({*of_block.expert_P[of_block.norm_P > 0].tolist()}) for of_block in pairs)


def test_the_page_is_complete_in_itself_and_shows_experts_with_graphs_and_contexts(made, int4, corpus):
    page = Page()
    text = made.files["symbols.html"].decode()
    page.feed(text)
    assert page.open == []
    assert all(link.startswith("#") for link in page.fetched)
    assert page.count["script"] == 1
    readable = int(((tiers(made) >= Tier.T1) & (tiers(made) <= Tier.T3)).sum())
    assert 0 < page.count["article"] == page.count["svg"] <= min(BY_ENERGY * LAYERS + BY_LOGIC, readable)
    assert page.count["mark"] >= page.count["article"]
    index = text.split('<table id="index">')[1].split("</table>")[0]
    assert index.count("<tr data-energy") == writing_on_held_out(int4, corpus)
    for link in page.fetched:
        assert link == "#" or f'<article id="{link[1:]}"' in text
    for word in (
        "loss_recovered_constant_magnitude", "score_name_f1_permuted_mean", "T4", "By tokens alone",
        "loss_recovered_gate_constant_magnitude_over_biases", "loss_recovered_biases_alone", "verbatim_energy_share",
        "rule_gates_pass_through", "description_bits_per_expert_with_biases", "rule_firing_f1_mean",
    ):  # fmt: skip
        assert word in text
    assert "nan" not in text.split("</table>")[0]


def test_nothing_but_the_experts_changes(made, int4):
    ours, theirs = made.value.state_dict(), int4.state_dict()
    for name, tensor in theirs.items():
        if ".moe." not in name:
            assert torch.equal(ours[name.replace(".router.", ".router.scores.")], tensor)
        elif ".moe.v." in name or "axis_bias" in name or ".moe.index." in name:
            assert torch.equal(ours[name], tensor)


def test_the_same_inputs_make_the_same_tables(corpus, int4):
    small = config(coordinates=(1, 3), sample_tokens=1024, check_tokens=1024, measure=MeasureConfig(tokens=256))
    first, second = (distill_symbols.fn(small, corpus=corpus, int4=int4).value.state_dict() for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("coordinates", [(8,), (2, 16)], ids=str)
def test_any_ladder_of_coordinates_will_do(corpus, int4, coordinates):
    small = config(coordinates=coordinates, sample_tokens=1024, check_tokens=1024, measure=MeasureConfig(tokens=256))
    output = distill_symbols.fn(small, corpus=corpus, int4=int4)
    assert output.value.spec.experts.coordinates == max(coordinates)


def test_int4_tables_of_grouped_scales_are_refused(corpus, int4):
    experts = int4.spec.experts.model_copy(update={"scale_groups": 2})
    grouped = LanguageModel(int4.spec.model_copy(update={"experts": experts}))
    with pytest.raises(ValueError, match="one scale a row, not scale_groups=2; quantize with 1"):
        distill_symbols.fn(config(), corpus=corpus, int4=grouped)


def test_the_stage_leaves_the_model_it_reads_as_it_was(corpus, int4):
    before = {name: tensor.clone() for name, tensor in int4.state_dict().items()}
    modules = [block.moe for block in int4.blocks()]
    distill_symbols.fn(
        config(coordinates=(1,), sample_tokens=1024, check_tokens=1024, measure=MeasureConfig(tokens=256)),
        corpus=corpus, int4=int4,
    )  # fmt: skip
    assert [block.moe for block in int4.blocks()] == modules
    assert all(torch.equal(tensor, before[name]) for name, tensor in int4.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [{"least_r2": 0}, {"least_r2": 1.1}, {"coordinates": ()}, {"places": 1}, {"samples": 3}, {"unknown": 1}]
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValidationError):
        config(**wrong)


@pytest.fixture(scope="module")
def sparse(corpus, int4):
    return sparse_int4(corpus, int4)


@pytest.fixture(scope="module")
def sparse_made(corpus, sparse):
    return distill_symbols.fn(config(least_r2=1.0, least_recovered=0.05), corpus=corpus, int4=sparse)


@pytest.fixture(scope="module")
def sparse_loose(corpus, sparse):
    return distill_symbols.fn(config(least_r2=0.6, least_recovered=0.05), corpus=corpus, int4=sparse)


def test_experts_with_sparse_rows_are_readable_and_lose_nothing(corpus, sparse, sparse_made):
    assert set(tiers(sparse_made).tolist()) <= {Tier.T1, Tier.T2, Tier.T3, Tier.T4}
    assert sparse_made.metrics["readable_energy_share"] == pytest.approx(1)
    assert sparse_made.metrics["formula_coordinates_median"] <= 5
    assert (
        sparse_made.metrics["description_bits_per_expert"] <= sparse_made.metrics["description_bits_per_expert_exact"]
    )
    tokens_BT, _ = random_windows(corpus.held_out, batch=3, length=32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(sparse_made.value(tokens_BT), sparse(tokens_BT), atol=1e-3, rtol=1e-3)


def test_features_have_names_that_beat_their_control(sparse_made, made):
    names = Names.model_validate_json(sparse_made.files["names.json"])
    assert len([name for name in names.names if name.kind == "feature"]) == 8  # of the one router
    for name in ("feature_name_f1_mean", "feature_name_f1_permuted_mean"):
        assert name not in made.metrics
    assert sparse_made.metrics["feature_name_f1_mean"] > sparse_made.metrics["feature_name_f1_permuted_mean"]
    text = sparse_made.files["symbols.html"].decode()
    assert "A^0_" in text
    assert "<td>f_" in text
    assert "<td>f_" not in made.files["symbols.html"].decode()


def test_length_is_set_against_fidelity_at_each_budget(made):
    lines = made.files["length.csv"].decode().splitlines()
    points = [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]
    assert [point["lost"] for point in points] == list(DistillSymbolsConfig().budgets)
    for longer, shorter in itertools.pairwise(reversed(points)):
        assert longer["bits_per_expert"] >= shorter["bits_per_expert"]
        assert longer["r2_energy_weighted"] >= shorter["r2_energy_weighted"] - 1e-6
    assert abs(points[-1]["loss_increase_nats"]) <= abs(points[0]["loss_increase_nats"])
    assert points[-1]["kl_to_teacher_nats"] < points[0]["kl_to_teacher_nats"]
    assert_picture(made.files["length.png"])
