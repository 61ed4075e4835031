"""The training stages learn a text that repeats, and say what they made."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from artifacts.meanings import MODEL
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.models import LanguageModel
from pipeline.models.dense import DenseSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.run import Run, running
from pipeline.training.table_start import draw_tables
from stages.pretraining import loss_without_context
from stages.train_dense import TrainDenseConfig, train_dense
from stages.train_monet import TrainMonetConfig, train_monet
from stages.train_peer import TrainPeerConfig, train_peer
from tests.pictures import assert_training_files

MEASURED = {
    "held_out_loss_nats",
    "held_out_loss_standard_error_nats",
    "validation_loss_nats",
    "held_out_bits_per_byte",
    "held_out_tokens_measured",
    "num_parameters",
    "peak_memory_bytes",
    "train_loss_nats",
    "train_tokens",
    "tokens_per_second",
    "steps_skipped",
}
ROUTED = {"effective_experts", "effective_experts_least"}
PEER = PeerSpec(num_keys=6, num_experts=50, num_heads=2, d_key=5, pairs_per_head=3, active_keys=2)


def assert_metrics(output, names):
    assert set(output.metrics) == names
    assert all(math.isfinite(value) for value in output.metrics.values())


def assert_learned(output):
    """Far below ignorance (8 bits a byte): the text repeats."""
    assert output.metrics["held_out_bits_per_byte"] < 5
    assert output.metrics["held_out_bits_per_byte"] == pytest.approx(output.metrics["held_out_loss_nats"] / math.log(2))
    assert not output.value.training


def test_train_monet_learns_and_uses_its_sub_experts(monet, monet_config):
    assert monet.value.kind == "monet"
    assert monet.value.spec.experts == monet_config.monet
    assert monet.value.spec.transformer.vocab_size == 256
    assert_metrics(monet, MEASURED | ROUTED | {"uniformity_loss", "ambiguity_loss"})
    assert_learned(monet)
    assert monet.metrics["train_tokens"] == 60 * 6 * 23
    names = ["train_loss_nats", "uniformity_loss", "ambiguity_loss"]
    assert_training_files(monet.files, steps=60, tokens=60 * 6 * 23, names=names)
    assert monet.metrics["uniformity_loss"] >= math.log(6)
    assert 0 <= monet.metrics["ambiguity_loss"] < 1


def test_uniformity_weight_spreads_the_gates(run_in, monet_config, corpus, training):
    losses = []
    for weight in (0.0, 10.0):
        config = monet_config.model_copy(update={"uniformity_weight": weight, "training": training(20)})
        losses.append(run_in(train_monet, config, corpus=corpus).metrics["uniformity_loss"])
    assert losses[1] < losses[0]


def test_train_dense_learns(run_in, corpus, monet_config, training):
    config = TrainDenseConfig(
        transformer=monet_config.transformer,
        mlp=DenseSpec(d_hidden=30),
        training=training(30),
        measure=monet_config.measure,
    )
    output = run_in(train_dense, config, corpus=corpus)
    assert output.value.kind == "dense"
    assert_metrics(output, MEASURED)
    assert_learned(output)
    assert_training_files(output.files, steps=30, tokens=30 * 6 * 23, names=["train_loss_nats"])


@pytest.mark.parametrize("gate", ["softmax", "jumprelu"])
def test_train_peer_learns_and_tells_the_size_of_its_tables(run_in, corpus, monet_config, training, gate):
    config = TrainPeerConfig(
        transformer=monet_config.transformer,
        peer=PEER.model_copy(update={"gate": gate}),
        training=training(30),
        measure=monet_config.measure,
    )
    output = run_in(train_peer, config, corpus=corpus)
    assert output.value.kind == "peer"
    names = MEASURED | ROUTED
    names |= {"active_experts_per_token"} | ({"firing_mismatches"} if gate == "jumprelu" else set())
    names |= {"num_experts", "expert_bytes", "table_bytes_per_parameter"}
    assert_metrics(output, names)
    assert_learned(output)
    assert output.metrics.get("firing_mismatches", 0) == 0
    assert_training_files(output.files, steps=30, tokens=30 * 6 * 23, names=["train_loss_nats"])
    assert output.metrics["num_experts"] == 50
    assert output.metrics["expert_bytes"] == pytest.approx(2 * 20 * 4 + 4 + (37 + 2 * 4) / 50)


@pytest.fixture(scope="module")
def in_int4(monet_config, training):
    return TrainPeerConfig(
        transformer=monet_config.transformer,
        peer=PEER.model_copy(update={"precision": "int4"}),
        training=training(60, learning_rate=0.02),
        measure=monet_config.measure,
    )


def test_train_peer_in_int4_learns_with_tables_of_nibbles_alone(run_in, corpus, in_int4):
    output = run_in(train_peer, in_int4, corpus=corpus)
    assert output.value.kind == "peer-int4"
    names = {"active_experts_per_token", "num_experts", "expert_bytes", "table_bytes_per_parameter", "rows_refused"}
    names |= {"flips_per_touched_weight", "scale_growths"}
    assert_metrics(output, MEASURED | ROUTED | names)
    assert_learned(output)
    # Two planes, scale and moment a row; the bias and AdamW's two moments of it; a byte a cell, in two blocks of cells.
    index = (37 + 2 * 4) / 50
    assert output.metrics["table_bytes_per_parameter"] == pytest.approx((2 * (20 + 2 + 4) + 4 + 8 + index) / 40)
    assert not any(name.endswith((".moe.u", ".moe.v")) for name, _ in output.value.named_parameters())


def test_in_int4_the_touched_rows_move_and_the_others_stay_where_they_were_drawn(run_in, corpus, in_int4, training):
    short = in_int4.model_copy(update={"training": training(2)})
    model = run_in(train_peer, short, corpus=corpus).value
    start = LanguageModel(model.spec)
    with running(Run(seed=0)):
        draw_tables(start)
    touched = 0
    for ours, theirs in zip(model.blocks(), start.blocks(), strict=True):
        for table, drawn in ((ours.moe.u, theirs.moe.u), (ours.moe.v, theirs.moe.v)):
            moved_E = (table.weight_EB != drawn.weight_EB).any(1) | (table.accumulator_EB != drawn.accumulator_EB).any(
                1
            )
            assert torch.equal(moved_E, table.moment_E > 0)
            touched += int(moved_E.sum())
    assert 0 < touched <= 4 * 50


def test_training_in_int4_that_is_killed_ends_with_the_bits_of_one_that_was_not(corpus, in_int4, training, tmp_path):
    config = in_int4.model_copy(update={"training": training(9, checkpoint_seconds=1e-9)})

    class Killed(Exception):
        pass

    def die_at_step_6(progress):
        if progress.step == 6:
            raise Killed

    def run(**options):
        with running(Run(seed=4, **options)):
            return train_peer.fn(config, corpus=corpus)

    whole = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.loop.time.monotonic", itertools.count().__next__)  # every step is told
        with pytest.raises(Killed):
            run(checkpoints=tmp_path, report=die_at_step_6)
    resumed = run(checkpoints=tmp_path)
    for name, tensor in whole.value.state_dict().items():
        assert torch.equal(resumed.value.state_dict()[name], tensor), name


@pytest.mark.parametrize("precision", ["int8", "bfloat16", "float32"])
def test_tables_of_other_precisions_are_not_trained_from_random_weights(precision):
    with pytest.raises(ValidationError, match=f"tables of precision {precision} are not trained .* use float or int4"):
        TrainPeerConfig(peer=PEER.model_copy(update={"precision": precision}))


def test_a_table_rate_moves_the_tables_alone_faster(run_in, corpus, monet_config, training):
    """One step of AdamW: everything moves by the learning rate, the tables by their multiple of it."""
    base = TrainPeerConfig(
        transformer=monet_config.transformer,
        peer=PEER,
        training=training(1, warmup_steps=0, weight_decay=0.0, learning_rate=1e-6),
        measure=monet_config.measure,
    )
    models = [
        run_in(train_peer, base.model_copy(update={"table_rate": rate}), corpus=corpus).value for rate in (1e-6, 100.0)
    ]
    states = [model.state_dict() for model in models]
    moved = {name: (states[1][name].float() - t.float()).abs().max().item() for name, t in states[0].items()}
    for name, distance in moved.items():
        if name.endswith((".moe.u", ".moe.v")):
            assert distance == pytest.approx(1e-4, rel=0.02)
        else:
            assert distance == 0, name


def test_without_context_the_loss_is_the_entropy_of_the_tokens():
    """Two tokens in equal parts, as often held out as in training: a bit, but for the one that is added to all."""
    tokenizer = ByteTokenizer()
    split = make_split([(0, "ab" * 20_000)], tokenizer)
    spec = CorpusSpec(tokenizer="bytes", vocab_size=256, domains=("x",))
    corpus = Corpus(spec, train=split, validation=split, held_out=split, tokenizer=tokenizer)
    assert loss_without_context(HeldOut(corpus, MeasureConfig(), 50)) == pytest.approx(math.log(2), rel=0.02)


def test_without_context_a_model_that_learnt_the_text_is_not_reached(monet, corpus):
    assert (
        loss_without_context(HeldOut(corpus, MeasureConfig(tokens=300), 23)) > monet.metrics["held_out_loss_nats"] + 0.3
    )


def test_the_same_seed_trains_the_same_bits(run_in, corpus, monet_config, training):
    config = monet_config.model_copy(update={"training": training(6)})
    outputs = [run_in(train_monet, config, seed=seed, corpus=corpus) for seed in (2, 2, 3)]
    states = [output.value.state_dict() for output in outputs]
    assert outputs[0].files == outputs[1].files
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


@pytest.mark.parametrize("config", [TrainDenseConfig, TrainMonetConfig, TrainPeerConfig])
def test_every_field_of_a_training_stage_says_what_it_is(config):
    assert all(field.description for field in config.model_fields.values())


def test_metrics_shared_by_the_stages_are_described():
    assert (MEASURED | ROUTED) - set(MODEL) <= {"train_loss_nats"}


@pytest.mark.parametrize("gate", ["softmax", "jumprelu"])
def test_a_peer_whose_cells_are_mostly_empty_is_refused(gate):
    peer = PeerSpec(num_keys=64, num_experts=5, gate=gate)
    with pytest.raises(ValueError, match=r"num_experts=5 leaves 4,091 of 4,096 cells empty .* lost"):
        TrainPeerConfig(peer=peer)
    assert TrainPeerConfig(peer=PeerSpec(num_keys=2, num_experts=4, pairs_per_head=2)).peer.num_cells == 4


def test_softmax_takes_as_few_keys_as_jumprelus_active_keys():
    assert PeerSpec(num_keys=4, num_experts=16, pairs_per_head=4).active_keys == 4
    with pytest.raises(ValueError, match="active_keys=4 must be below num_keys=4"):
        PeerSpec(num_keys=4, num_experts=16, pairs_per_head=4, gate="jumprelu")
