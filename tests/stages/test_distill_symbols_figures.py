"""The figures of distill-symbols, counted again by hand: what biases recover, who fires where, and of which split."""

import pytest
import torch

from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure_against
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.showing.firing_rules import rule_circuit
from pipeline.symbolic.tiers import Tier
from stages.distill_symbols import distill_symbols
from tests.tiny_int4 import EXPERTS, config, trained_int4, words_corpus, words_split


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return words_corpus()


@pytest.fixture(scope="module")
def int4(corpus) -> LanguageModel:
    return trained_int4(corpus)


@pytest.fixture(scope="module")
def made(corpus, int4):
    return distill_symbols.fn(config(least_r2=0.6, least_recovered=0.05), corpus=corpus, int4=int4)


def without_experts(int4: LanguageModel) -> LanguageModel:
    """The model with axis biases whose experts write nothing."""
    model = LanguageModel(int4.spec)
    model.load_state_dict(int4.state_dict())
    for block in model.blocks():
        block.moe.v.scale_E.zero_()
    return model.eval()


def test_what_biases_alone_recover_is_what_experts_that_write_nothing_do(made, corpus, int4):
    measured = measure_against(without_experts(int4), int4, HeldOut(corpus, MeasureConfig(tokens=512), 32))
    assert made.metrics["loss_recovered_biases_alone"] == pytest.approx(measured["loss_recovered"], abs=1e-6)
    biases, parent = measured["held_out_loss_nats"], measured["held_out_loss_nats"] - measured["loss_increase_nats"]
    share = (biases - made.metrics["held_out_loss_nats"]) / (biases - parent)
    assert made.metrics["loss_recovered_over_biases"] == pytest.approx(share, abs=1e-6)
    # Both counts place a control between the same ends.
    alone = made.metrics["loss_recovered_biases_alone"]
    for name in ("gate_constant_magnitude", "constant_magnitude", "permuted_firing"):
        usual = made.metrics[f"loss_recovered_{name}"]
        over = made.metrics[f"loss_recovered_{name}_over_biases"]
        assert over == pytest.approx((usual - alone) / (1 - alone), abs=1e-6)


def test_nothing_is_chosen_on_held_out_tokens_and_what_is_reported_is_of_them(corpus, int4):
    small = config(coordinates=(1, 3), sample_tokens=1024, check_tokens=1024, measure=MeasureConfig(tokens=256))
    other = Corpus(
        corpus.spec, train=corpus.train, validation=corpus.validation,
        held_out=words_split(170, torch.Generator().manual_seed(9)), tokenizer=corpus.tokenizer,
    )  # fmt: skip
    first, second = (distill_symbols.fn(small, corpus=of, int4=int4) for of in (corpus, other))
    theirs = second.value.state_dict()
    for name, tensor in first.value.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    for name in ("description_bits_per_expert", "block_loss_recovered_least", "expert_share_t1", "kan_experts_chosen"):
        assert first.metrics[name] == second.metrics[name], name
    for name in (
        "readable_energy_share", "energy_share_t1", "r2_energy_weighted", "firing_f1_mean", "token_logic_f1_mean",
        "rule_f1_mean", "rule_f1_permuted_mean", "score_name_f1_mean", "coordinate_name_f1_mean",
    ):  # fmt: skip
        assert first.metrics[name] != second.metrics[name], name


def rule_is_true(experts, expert: int, context: list[int]) -> bool:
    """Wire by wire; `context` is the token, then those before it, -1 where there is none."""
    circuit = rule_circuit(experts, expert)
    wires = []
    for literal in circuit.inputs:
        token = context[int(experts.literal_offset_L[literal])]
        wires.append(token >= 0 and bool(experts.member_LV[literal, token]))
    for kind, a, b in circuit.gates:
        wires.append(bool(kind >> (3 - 2 * wires[a] - wires[b]) & 1))
    return wires[-1]


def firings_by_hand(model, tokens_BT) -> list[set[tuple[int, int]]]:
    """(expert, token) of every firing, block by block: each cell compared, each rule evaluated token by token."""
    found, router, row_NHI, column_NHJ = [], None, torch.zeros(0), torch.zeros(0)
    with torch.no_grad():
        states = model.trace(tokens_BT).expert_inputs
        for block, x_ND in zip(model.blocks(), states, strict=True):
            if block.router is not None:
                router = block.router if isinstance(block.router, PeerRouter) else block.router.scores
                row_NHI, column_NHJ = router.log_gates(x_ND)
            sum_NHC = (row_NHI[:, :, :, None] + column_NHJ[:, :, None, :]).flatten(2)
            fires_NC = (sum_NHC > router.threshold_H[:, None]).any(1)
            fires_NE = fires_NC[:, block.moe.index.cell_of_experts()]
            if isinstance(block.moe, SymbolExperts):
                for expert in torch.nonzero(block.moe.tier_E >= Tier.T2)[:, 0].tolist():
                    dropped = block.moe.tier_E[expert] == Tier.T4
                    for n in range(len(x_ND)):
                        window, place = divmod(n, tokens_BT.shape[1])
                        context = [int(tokens_BT[window, place - o]) if place >= o else -1 for o in range(2)]
                        fires_NE[n, expert] = not dropped and rule_is_true(block.moe, expert, context)
            found.append({(expert, token) for token, expert in torch.nonzero(fires_NE).tolist()})
    return found


def assert_firing_f1_is_counted(made, int4, corpus):
    tokens_BT, _ = held_out_windows(corpus.held_out, num_tokens=16_384, length=32)
    assert made.metrics["reported_tokens"] == tokens_BT.numel()
    kept, everyone, rates = [], [], []
    by_hand = [firings_by_hand(model, tokens_BT) for model in (made.value, int4)]
    for block, ours, theirs in zip(made.value.blocks(), *by_hand, strict=True):
        for expert in range(EXPERTS):
            here, there = ({n for e, n in firings if e == expert} for firings in (ours, theirs))
            if not there:
                continue
            everyone.append(2 * len(here & there) / (len(here) + len(there)))
            if block.moe.tier_E[expert] != Tier.T4:
                kept.append(everyone[-1])
                rates.append(len(there) / tokens_BT.numel())
    assert len(everyone) > len(kept) > 0
    assert made.metrics["firing_f1_mean"] == pytest.approx(sum(kept) / len(kept))
    assert made.metrics["firing_f1_mean_dropped_as_zero"] == pytest.approx(sum(everyone) / len(everyone))
    assert made.metrics["firing_f1_same_rate_null_mean"] == pytest.approx(sum(rates) / len(rates))


def test_firing_f1_is_that_of_two_models_each_on_its_own_states(made, corpus, int4):
    assert_firing_f1_is_counted(made, int4, corpus)
    # The one router reads a state that no symbols have touched.
    assert made.metrics["firing_f1_mean"] == pytest.approx(made.metrics["rule_firing_f1_mean"])


def test_exact_rules_fire_elsewhere_where_symbols_below_have_changed_the_state(corpus):
    int4 = trained_int4(corpus, router_group=1)
    loose = config(least_r2=0.9, least_recovered=0.05, coordinates=(2, 4), kan_experts=0)
    made = distill_symbols.fn(loose, corpus=corpus, int4=int4)
    assert_firing_f1_is_counted(made, int4, corpus)
    assert 0.5 < made.metrics["firing_f1_mean"] < made.metrics["rule_firing_f1_mean"] <= 1


def test_axis_biases_are_counted_in_bits(made, int4):
    spec = int4.spec.experts
    bits = 8 * (spec.num_keys + spec.num_columns) * int4.shape.d_model / EXPERTS
    assert made.metrics["description_bits_axis_biases_per_expert"] == pytest.approx(bits)
    in_all = made.metrics["description_bits_per_expert_with_biases"]
    assert in_all == pytest.approx(made.metrics["description_bits_per_expert"] + bits)


def test_gates_that_pass_a_literal_on_are_counted(made):
    total = passing = 0
    for block in made.value.blocks():
        for expert in torch.nonzero((block.moe.tier_E == Tier.T2) | (block.moe.tier_E == Tier.T3))[:, 0].tolist():
            for kind, _, _ in rule_circuit(block.moe, expert).gates:
                table = [kind >> (3 - x) & 1 for x in range(4)]  # of 00, 01, 10, 11
                total += 1
                passing += table[:2] == table[2:] or (table[0] == table[1] and table[2] == table[3])
    assert total > 0
    assert made.metrics["rule_gates_total"] == total
    assert made.metrics["rule_gates_pass_through"] == passing
