"""Metrics where their values are known: of a model with itself, without its experts, and by hand."""

import math

import pytest
import torch

from artifacts.meanings import MODEL
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import BpeTokenizer
from pipeline.corpus.windows import held_out_windows
from pipeline.measuring import held_out as reader
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure, measure_against, validation_loss
from pipeline.measuring.routing import effective, measure_routing
from pipeline.measuring.sizes import measure_size, measure_tables, measure_training_tables
from pipeline.measuring.swapped import experts_zeroed, swapped
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.layer import firing_mismatches
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.transformer import TransformerSpec
from tests.tiny import (
    DENSE,
    EVERY_KIND,
    HORIZONTAL,
    INT4,
    INT8,
    JUMP,
    SOFTMAX,
    TEXT,
    TRAINABLE,
    tiny_model,
    tiny_tokens,
)

CONFIG = MeasureConfig(tokens=256, batch_size=5)
LENGTH = 19


def model_of(spec, **options):
    return tiny_model(spec, vocab_size=256, **options)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_without_experts_the_experts_add_nothing_and_come_back(kind):
    model, tokens = tiny_model(EVERY_KIND[kind]), tiny_tokens()
    with torch.no_grad():
        before = model(tokens)
        with experts_zeroed(model):
            trace = model.trace(tokens)
        assert all(y.eq(0).all() for y in trace.expert_outputs)
        assert (trace.logits_BTV - before).abs().max() > 1e-2
        assert torch.equal(model(tokens), before)


def fail_within(model, experts):
    """What the blocks have while the others are in, which end in an error."""
    with swapped(model, experts):
        within = [block.moe for block in model.blocks()]
        raise KeyError(within)


def test_other_experts_are_those_of_their_blocks_alone_and_go_even_after_an_error():
    model, other = tiny_model(DENSE), torch.nn.Identity()
    before = [block.moe for block in model.blocks()]
    with pytest.raises(KeyError) as raised:
        fail_within(model, {1: other})
    assert raised.value.args[0] == [before[0], other, before[2]]
    assert [block.moe for block in model.blocks()] == before


def test_a_split_is_read_once_whatever_measures_it(corpus, monkeypatch):
    read = []

    def reading(split, **options):
        read.append((split, options["num_tokens"]))
        return held_out_windows(split, **options)

    monkeypatch.setattr(reader, "held_out_windows", reading)
    monkeypatch.setattr(reader, "FEW_TOKENS", 2 * LENGTH)
    held_out, model = HeldOut(corpus, CONFIG, LENGTH), model_of(JUMP)
    for _ in range(2):
        measure(model, held_out)
        measure_against(model, model, held_out)
        measure_routing(model, held_out)
        measure_against(model, model, held_out.few)
        validation_loss(model, held_out)
    assert read == [(corpus.held_out, 256), (corpus.held_out, 2 * LENGTH), (corpus.validation, 256)]


def test_batches_are_the_windows_in_order_and_few_are_at_most_so_many(corpus):
    wanted = held_out_windows(corpus.held_out, num_tokens=CONFIG.tokens, length=LENGTH)
    held_out = HeldOut(corpus, CONFIG, LENGTH)
    batches = list(held_out.batches())
    assert [len(inputs_BT) for inputs_BT, _ in batches] == [5, 5, 3]
    for side in (0, 1):
        assert torch.equal(torch.cat([batch[side] for batch in batches]), wanted[side])
    assert held_out.few is held_out
    many = HeldOut(corpus, MeasureConfig(tokens=65_536), LENGTH)
    assert (many.few.config.tokens, many.few.config.batch_size) == (16_384, 16)
    assert many.of_tokens(3 * LENGTH).windows[0].shape == (3, LENGTH)


def test_the_loss_is_the_mean_over_the_held_out_windows(corpus):
    model = model_of(DENSE)
    inputs_WT, targets_WT = held_out_windows(corpus.held_out, num_tokens=CONFIG.tokens, length=LENGTH)
    with torch.no_grad():
        log_p = torch.log_softmax(model(inputs_WT).double(), -1)
    nats_WT = -log_p.gather(-1, targets_WT[..., None])[..., 0]
    metrics = measure(model, HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["held_out_loss_nats"] == pytest.approx(nats_WT.mean().item(), rel=1e-6)
    standard_error = nats_WT.mean(1).std().item() / math.sqrt(len(nats_WT))
    assert metrics["held_out_loss_standard_error_nats"] == pytest.approx(standard_error, rel=1e-6)
    assert metrics["held_out_tokens_measured"] == nats_WT.numel()


def test_a_model_that_knows_nothing_needs_eight_bits_a_byte(corpus):
    model = model_of(DENSE)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    metrics = measure(model, HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["held_out_loss_nats"] == pytest.approx(math.log(256))
    assert metrics["held_out_bits_per_byte"] == pytest.approx(8)
    assert metrics["held_out_loss_standard_error_nats"] == pytest.approx(0, abs=1e-9)


def test_bits_a_byte_are_the_loss_over_the_bytes_its_targets_stand_for():
    tokenizer = BpeTokenizer.train([TEXT * 3], vocab_size=290)
    split = make_split([(0, TEXT * 9)], tokenizer)
    corpus = Corpus(
        CorpusSpec(tokenizer="bpe", vocab_size=len(tokenizer.token_bytes), domains=("farm",)),
        train=split, validation=split, held_out=split, tokenizer=tokenizer,
    )  # fmt: skip
    model = tiny_model(DENSE, vocab_size=len(tokenizer.token_bytes))
    _, targets_WT = held_out_windows(split, num_tokens=256, length=LENGTH)
    text_bytes = sum(len(tokenizer.token_bytes[token]) for token in targets_WT.flatten().tolist())
    assert text_bytes > targets_WT.numel()
    for metrics in (
        measure(model, HeldOut(corpus, CONFIG, LENGTH)),
        measure_against(model, model, HeldOut(corpus, CONFIG, LENGTH)),
    ):
        wanted = metrics["held_out_loss_nats"] * targets_WT.numel() / text_bytes / math.log(2)
        assert metrics["held_out_bits_per_byte"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("spec", [DENSE, HORIZONTAL, JUMP], ids=["dense", "monet", "peer"])
def test_a_model_against_itself_lost_nothing(corpus, spec):
    model = model_of(spec)
    metrics = measure_against(model, model, HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["loss_increase_nats"] == 0
    assert metrics["loss_increase_standard_error_nats"] == 0
    assert metrics["kl_to_teacher_nats"] == 0
    assert metrics["loss_recovered"] == 1
    alone = measure(model, HeldOut(corpus, CONFIG, LENGTH))
    assert {name: metrics[name] for name in alone} == pytest.approx(alone)
    with experts_zeroed(model):
        without = measure(model, HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["loss_without_experts_nats"] == pytest.approx(without["held_out_loss_nats"])
    assert metrics["loss_without_experts_nats"] != pytest.approx(metrics["held_out_loss_nats"], rel=1e-3)


def silenced(model):
    with torch.no_grad():
        for block in model.blocks():
            block.moe.down.weight.zero_()
            block.moe.down.bias.zero_()
    return model


def test_a_student_without_experts_recovers_nothing(corpus):
    metrics = measure_against(silenced(model_of(DENSE)), model_of(DENSE), HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["loss_recovered"] == pytest.approx(0, abs=1e-6)
    assert metrics["kl_to_teacher_nats"] > 0.01


def test_increase_and_divergence_are_those_of_the_two_models(corpus):
    student, teacher = model_of(DENSE, seed=1), model_of(DENSE)
    metrics = measure_against(student, teacher, HeldOut(corpus, CONFIG, LENGTH))
    inputs_WT, _ = held_out_windows(corpus.held_out, num_tokens=CONFIG.tokens, length=LENGTH)
    with torch.no_grad():
        q, p = (torch.softmax(m(inputs_WT).double(), -1) for m in (student, teacher))
    assert metrics["kl_to_teacher_nats"] == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-4)
    losses = [measure(m, HeldOut(corpus, CONFIG, LENGTH))["held_out_loss_nats"] for m in (student, teacher)]
    assert metrics["loss_increase_nats"] == pytest.approx(losses[0] - losses[1], rel=1e-4)
    assert metrics["loss_increase_standard_error_nats"] > 0


def test_effective_counts_what_is_used_evenly():
    assert effective(torch.ones(7)) == pytest.approx(7)
    assert effective(torch.tensor([0.0, 3.0, 0.0])) == pytest.approx(1)
    assert effective(torch.tensor([2.0, 2.0, 0.0, 0.0])) == pytest.approx(2)
    assert effective(torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(effective(torch.tensor([10.0, 20.0, 30.0])))
    assert 1 < effective(torch.tensor([1.0, 9.0])) < 2


def test_a_dense_model_has_no_routing(corpus):
    assert measure_routing(model_of(DENSE), HeldOut(corpus, CONFIG, LENGTH)) == {}


def test_routing_counts_experts_as_the_trace_does(corpus):
    model = model_of(JUMP)
    metrics = measure_routing(model, HeldOut(corpus, CONFIG, LENGTH))
    inputs_WT, _ = held_out_windows(corpus.held_out, num_tokens=CONFIG.tokens, length=LENGTH)
    with torch.no_grad():
        trace = model.trace(inputs_WT)
    pairs = [block.moe.index(r) for block, r in zip(model.blocks(), trace.routings, strict=True)]
    wanted = sum(len(p[0]) for p in pairs) / inputs_WT.numel() / 3
    assert metrics["active_experts_per_token"] == pytest.approx(wanted)
    sizes = [effective(torch.bincount(e, weights=g.double(), minlength=37)) for e, _, g in pairs]
    assert metrics["effective_experts"] == pytest.approx(sum(sizes) / 3, rel=1e-4)
    assert metrics["effective_experts_least"] == pytest.approx(min(sizes), rel=1e-4)
    assert metrics["firing_mismatches"] == 0


def test_a_softmax_router_reaches_as_many_experts_as_it_was_told(corpus):
    spec = SOFTMAX.model_copy(update={"num_experts": 25})
    metrics = measure_routing(model_of(spec), HeldOut(corpus, CONFIG, LENGTH))
    assert metrics["active_experts_per_token"] == spec.num_heads * spec.pairs_per_head


def test_monets_effective_experts_are_of_an_axis(corpus):
    metrics = measure_routing(model_of(HORIZONTAL), HeldOut(corpus, CONFIG, LENGTH))
    assert 1 < metrics["effective_experts_least"] <= metrics["effective_experts"] <= HORIZONTAL.num_sub_experts


def routed():
    model = tiny_model(JUMP)
    block = model.blocks()[0]
    with torch.no_grad():
        return block.router, model.trace(tiny_tokens()).routings[0]


def test_retrieval_obeys_the_rule():
    router, routing = routed()
    assert len(routing.cell_P) > 20
    assert firing_mismatches(router, routing) == 0


@pytest.mark.parametrize(
    ("tamper", "mismatches"),
    [
        (lambda cell_P: torch.cat([(cell_P[:1] + 1) % 25, cell_P[1:]]), 2),
        (lambda cell_P: torch.cat([cell_P[1:2], cell_P[1:]]), 2),
    ],
    ids=["another cell", "a cell twice"],
)
def test_a_retrieval_that_errs_is_counted(tamper, mismatches):
    router, routing = routed()
    wrong = PeerRouting(tamper(routing.cell_P), routing.start_N1, routing.gate_P, routing.axes)
    assert firing_mismatches(router, wrong) == mismatches


def test_a_threshold_moved_after_retrieval_is_counted():
    router, routing = routed()
    router.threshold_H -= 0.5
    assert firing_mismatches(router, routing) > 0


@pytest.mark.parametrize(
    ("spec", "expert_bytes"),
    [
        (SOFTMAX, 2 * 12 * 4 + 4),  # u and v, and the bias
        (INT8, 2 * (12 + 2) + 4),  # a scale for each row
        (INT4, 2 * (6 + 2) + 4),
        (TRAINABLE, 2 * (6 + 6 + 2 + 4) + 4),  # the second plane and the moment
    ],
    ids=["float", "int8", "int4", "int4-accumulator"],
)
def test_table_bytes_are_those_counted_by_hand(spec, expert_bytes):
    index = 26 + 4  # of 25 cells, and where the last one ends: a byte each, and an int32 for the 32 that begin there
    assert measure_tables(tiny_model(spec)) == {
        "num_experts": 37,
        "expert_bytes": pytest.approx(expert_bytes + index / 37),
        "table_bytes_per_parameter": pytest.approx((expert_bytes + index / 37) / 24),
    }


def test_table_bytes_are_those_of_all_tensors_of_an_expert_layer_but_the_axes_biases():
    model = tiny_model(INT8)
    state = next(iter(model.blocks())).moe.state_dict()
    total = sum(tensor.numel() * tensor.element_size() for name, tensor in state.items() if "axis_bias" not in name)
    assert measure_tables(model)["expert_bytes"] * 37 == pytest.approx(total)


def test_int4_of_width_256_trains_in_less_than_1_05_bytes_a_parameter_with_its_index_of_cells():
    spec = SOFTMAX.model_copy(update={"precision": "int4", "accumulator": True, "num_keys": 64, "num_experts": 4096})
    shape = TransformerSpec(vocab_size=23, d_model=256, num_layers=1, num_heads=2, num_kv_heads=1)
    sizes = measure_training_tables(LanguageModel(ModelSpec(transformer=shape, experts=spec)))
    tables, bias, moments, index = 2 * (128 + 128 + 2 + 4), 4, 8, (4097 + 129 * 4) / 4096
    assert sizes["table_bytes_per_parameter"] == pytest.approx((tables + bias + moments + index) / 512)
    assert sizes["table_bytes_per_parameter"] < 1.0492  # an int32 a cell made it 1.0547


def test_parameters_are_counted():
    sizes = measure_size(tiny_model(DENSE))
    block = 2 * 12 * 12 + 2 * 12 * 4 + 2 * 12 + (12 * 18 + 18) + (18 * 12 + 12)
    assert sizes["num_parameters"] == 2 * 23 * 12 + 12 + 3 * block
    assert sizes["peak_memory_bytes"] > 1e7


@pytest.mark.parametrize("spec", [HORIZONTAL, JUMP], ids=["monet", "peer"])
def test_every_metric_is_described(corpus, spec):
    model = model_of(spec)
    metrics = {
        **measure_against(model, model, HeldOut(corpus, CONFIG, LENGTH)),
        **measure_routing(model, HeldOut(corpus, CONFIG, LENGTH)),
        **(measure_tables(model) if spec is JUMP else {}),
        **measure_size(model),
    }
    assert set(metrics) <= set(MODEL)
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
