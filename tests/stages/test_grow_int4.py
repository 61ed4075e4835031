"""grow-int4: more experts, the same function."""

import math

import pytest
import torch

from artifacts.meanings import MODEL
from pipeline.models import LanguageModel
from pipeline.transforms.precision import requantized, to_int4
from stages.finetune_int4 import FinetuneInt4Config, finetune_int4
from stages.grow_int4 import GrowInt4Config, grow_int4
from tests.pictures import assert_picture

METRICS = {
    "held_out_loss_nats", "held_out_loss_standard_error_nats", "held_out_bits_per_byte", "held_out_tokens_measured",
    "loss_increase_nats", "loss_increase_standard_error_nats", "kl_to_teacher_nats", "loss_without_experts_nats",
    "loss_recovered", "effective_experts", "effective_experts_least", "active_experts_per_token", "firing_mismatches",
    "num_experts", "expert_bytes", "table_bytes_per_parameter", "num_parameters", "peak_memory_bytes",
}  # fmt: skip


@pytest.fixture(scope="module")
def int4(peer):
    return to_int4(peer.value, clips=1)


@pytest.fixture(scope="module")
def config(distill_config):
    return GrowInt4Config(context_length=23, measure=distill_config.measure)


@pytest.fixture(scope="module")
def once(run_in, config, corpus, int4):
    return run_in(grow_int4, config, corpus=corpus, int4=int4)


@pytest.fixture(scope="module")
def thrice(run_in, config, corpus, int4):
    """Of a model that trains."""
    trainable = requantized(int4, {"accumulator": True})
    return run_in(grow_int4, config.model_copy(update={"doublings": 3}), corpus=corpus, int4=trainable)


def test_metrics_are_there_and_finite(once, thrice):
    for output in (once, thrice):
        assert set(output.metrics) == METRICS <= set(MODEL)
        assert all(math.isfinite(value) for value in output.metrics.values())


def test_a_doubling_is_twice_the_experts_of_the_same_bytes(once, thrice, int4):
    experts = int4.spec.experts
    assert once.metrics["num_experts"] == 2 * experts.num_experts
    assert once.value.spec.experts.num_experts == 2 * experts.num_experts
    assert once.metrics["expert_bytes"] == pytest.approx(2 * (10 + 2) + 4 + (73 + 3 * 4) / 80)
    assert thrice.metrics["num_experts"] == 8 * experts.num_experts
    assert thrice.metrics["expert_bytes"] == pytest.approx(2 * (10 + 10 + 2 + 4) + 4 + (289 + 10 * 4) / 320)
    grid = thrice.value.spec.experts
    assert (grid.num_keys, grid.num_columns) == (2 * experts.num_keys, 4 * experts.num_keys)


def test_the_loss_is_that_of_the_smaller_pool(once, thrice):
    """The mean over 300 tokens of differences that are rounding: below 1e-5 nats, as is the divergence."""
    for output in (once, thrice):
        assert abs(output.metrics["loss_increase_nats"]) < 1e-5
        assert abs(output.metrics["kl_to_teacher_nats"]) < 1e-5
        assert output.metrics["loss_recovered"] == pytest.approx(1, abs=1e-3)
        assert output.metrics["firing_mismatches"] == 0


def test_the_kind_and_the_accumulator_stay(once, thrice):
    assert once.value.kind == thrice.value.kind == "peer-int4"
    assert not once.value.spec.experts.accumulator
    assert thrice.value.spec.experts.accumulator


def test_the_model_that_grows_is_left_alone(run_in, config, corpus, int4):
    before = {name: tensor.clone() for name, tensor in int4.state_dict().items()}
    run_in(grow_int4, config, corpus=corpus, int4=int4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in int4.state_dict().items())


def test_the_same_seed_gives_the_same_bits_and_another_gives_other_new_experts(run_in, config, corpus, int4, once):
    states = [run_in(grow_int4, config, seed=seed, corpus=corpus, int4=int4).value.state_dict() for seed in (0, 1)]
    wanted = once.value.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in states[0].items())
    differing = {name for name, tensor in states[1].items() if not torch.equal(tensor, wanted[name])}
    assert differing == {f"model.layers.{layer}.moe.u.weight_EB" for layer in range(2)}


def test_each_has_a_picture(once, thrice):
    for output in (once, thrice):
        assert output.files.keys() == {"plot.png"}
        assert_picture(output.files["plot.png"])


def test_a_grown_model_is_written_and_read_back(once, corpus):
    model = once.value
    again = LanguageModel.restore(model.kind, model.spec.model_dump(mode="json"), model.to_tensors(), {}).eval()
    tokens = corpus.held_out.tokens_at(torch.arange(5 * 23)).view(5, 23)
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


def test_a_grown_model_is_fine_tuned_like_any_other(run_in, corpus, once, peer, training, distill_config):
    """On next tokens: its new experts, that said nothing, come to say something."""
    config = FinetuneInt4Config(
        objective="next-token", table_rate=1e-2, training=training(12), measure=distill_config.measure
    )
    silent = [block.moe.v.rows(torch.arange(80)).eq(0).all(1) for block in once.value.blocks()]
    tuned = run_in(finetune_int4, config, corpus=corpus, int4=once.value, peer=peer.value)
    for block, silent_E in zip(tuned.value.blocks(), silent, strict=True):
        assert silent_E.sum() >= 40
        assert block.moe.v.rows(silent_E.nonzero()[:, 0]).ne(0).any()
    assert tuned.metrics["num_experts"] == 80


def test_a_float_model_is_refused(run_in, config, corpus, peer):
    with pytest.raises(ValueError, match="only int4 tables with one scale a row grow; this is a 'peer'"):
        run_in(grow_int4, config, corpus=corpus, int4=peer.value)
