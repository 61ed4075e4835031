"""An expert layer that no file of the house names is built, trained, saved, opened, measured and recorded."""

import math

import pytest
import torch
from pydantic import ValidationError

from artifacts import ArtifactError, Recipe, Store
from artifacts.meanings import MODEL
from pipeline import codec
from pipeline.measuring.drift import drift_metrics, measure_firings
from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.loss import measure, measure_against
from pipeline.measuring.routing import effective
from pipeline.measuring.sizes import measure_tables
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.transformer import TransformerShape, TransformerSpec
from pipeline.run import Run, running
from pipeline.symbolic.recording import record
from pipeline.training.config import TrainingConfig
from pipeline.training.distillation import fit_part, from_next_tokens
from pipeline.training.table_start import draw_tables
from stages.pretraining import pretrain
from tests.circumstance import CIRCUMSTANCE
from tests.tiny import DENSE, tiny_corpus, tiny_model

SHAPE = TransformerShape(d_model=14, num_layers=2, num_heads=1, num_kv_heads=1)
MEASURE = MeasureConfig(tokens=300, batch_size=5)
LENGTH, EXPERTS, ACTIVE = 23, 9, 2


@pytest.fixture(scope="module")
def corpus():
    return tiny_corpus()


def training(steps):
    return TrainingConfig(steps=steps, batch_size=6, context_length=LENGTH, learning_rate=0.01, warmup_steps=5)


@pytest.fixture(scope="module")
def trained(toy, corpus):
    with running(Run(seed=0)):
        return pretrain(
            corpus=corpus, shape=SHAPE, experts=toy.ToySpec(), training=training(40), measured=MEASURE
        )  # fmt: skip


def tokens():
    return torch.randint(256, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def test_its_spec_is_validated_as_those_of_the_house_are(toy):
    transformer = TransformerSpec(**SHAPE.model_dump(), vocab_size=256)
    spec = ModelSpec(transformer=transformer, experts=toy.ToySpec(active=3))
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError, match=r"experts\.toy\.active\n  Input should be greater than or equal to 1"):
        ModelSpec.model_validate({"transformer": transformer, "experts": {"layer": "toy", "active": 0}})
    assert ModelSpec(transformer=transformer, experts=DENSE).experts is DENSE


def test_it_learns_and_is_measured(trained, corpus):
    metrics = trained.metrics
    assert metrics["held_out_loss_nats"] < 0.8 * math.log(256)
    assert metrics["active_experts_per_token"] == ACTIVE
    sums_BE = torch.zeros(2, EXPERTS)
    with torch.no_grad():
        for inputs_BT in corpus.held_out.tokens_at(torch.arange(300))[: 13 * LENGTH].reshape(13, 1, LENGTH):
            for block, visit in enumerate(trained.value.walk(inputs_BT)):
                expert_NK, gate_NK = visit.routing
                sums_BE[block].index_add_(0, expert_NK.flatten(), gate_NK.flatten())
    least = min(effective(sums_E) for sums_E in sums_BE)
    assert 1 < metrics["effective_experts_least"] == pytest.approx(least, rel=0.1)
    assert "firing_mismatches" not in metrics
    assert set(metrics) <= set(MODEL)
    against = measure_against(trained.value, tiny_model(DENSE, vocab_size=256), HeldOut(corpus, MEASURE, LENGTH))
    assert against["held_out_loss_nats"] == pytest.approx(metrics["held_out_loss_nats"])
    assert measure_tables(trained.value) == {
        "num_experts": EXPERTS,
        "expert_bytes": 2 * 14 * 4,
        "table_bytes_per_parameter": 4,
    }


def test_it_is_saved_and_opened(trained, tmp_path):
    model, store = trained.value, Store(tmp_path / "store")

    def publish(tensors):
        recipe = Recipe(stage="train-toy", stage_version=1, config={}, seed=len(store.manifests()), inputs={})
        id = store.publish(
            recipe=recipe, kind=model.kind, spec=model.spec.model_dump(mode="json"), tensors=tensors, metrics={},
            files={}, circumstance=CIRCUMSTANCE,
        )  # fmt: skip
        return store.open(id)

    opened = codec.load(publish(model.to_tensors()))
    assert isinstance(opened, LanguageModel)
    with torch.no_grad():
        assert torch.equal(opened(tokens()), model(tokens()))
    damaged = {name: tensor.clone() for name, tensor in model.to_tensors().items()}
    damaged["model.layers.1.moe.v"][4, 2] = torch.nan
    with pytest.raises(ArtifactError, match=r": tensor 'model\.layers\.1\.moe\.v' holds nan at \(4, 2\)"):
        codec.load(publish(damaged))


def test_what_its_experts_do_is_recorded(trained):
    batches = [tokens(), tokens().flip(0)]
    for layer, of_block in enumerate(record(trained.value, batches, places=2, what="record")):
        with torch.no_grad():
            visits = [list(trained.value.walk(tokens_BT))[layer] for tokens_BT in batches]
        expert_NK = torch.cat([visit.routing[0] for visit in visits])
        gate_NK = torch.cat([visit.routing[1] for visit in visits])
        assert of_block.events.count_E.tolist() == torch.bincount(expert_NK.flatten(), minlength=EXPERTS).tolist()
        u_ED = trained.value.blocks()[layer].moe.u.detach()
        for expert, token, gate, pre in zip(
            *(of_P.tolist() for of_P in (of_block.events.expert_P, of_block.events.token_P, of_block.gate_P,
                                         of_block.pre_P)),
            strict=True,
        ):  # fmt: skip
            k = expert_NK[token].tolist().index(expert)
            assert gate == float(gate_NK[token, k])
            assert pre == pytest.approx(float(of_block.x_ND[token].double() @ u_ED[expert].double()), abs=1e-5)


def test_it_drifts_from_itself_nowhere_and_from_another_kind_not_at_all(trained, corpus):
    model = trained.value
    metrics = drift_metrics(measure_firings(model, model, HeldOut(corpus, MEASURE, LENGTH)))
    assert metrics["firing_drift_mean"] == metrics["gate_shift_mean"] == 0
    dense = tiny_model(DENSE, vocab_size=256, shape=SHAPE)
    with pytest.raises(ValueError, match=r"9 experts of ToyExperts and a teacher's 18 experts of DenseMLP; it takes"):
        measure_firings(model, dense, HeldOut(corpus, MEASURE, LENGTH))


def test_its_tables_are_drawn_and_a_part_of_it_learns_alone(toy, corpus):
    transformer = TransformerSpec(**SHAPE.model_dump(), vocab_size=256)
    model = LanguageModel(ModelSpec(transformer=transformer, experts=toy.ToySpec()))
    with running(Run(seed=3)):
        draw_tables(model)
        first = Run(seed=3).generator("start of table u of block 0")
        drawn = torch.randn(EXPERTS, 14, generator=first) * 14**-0.5
        assert torch.equal(model.blocks()[0].moe.u, drawn)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        loss = measure(model, HeldOut(corpus, MEASURE, LENGTH))["held_out_loss_nats"]
        fit_part(
            model, "experts", from_next_tokens(model), corpus=corpus, training=training(8), tables=None, what="part"
        )  # fmt: skip
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"model.layers.{layer}.moe.{table}" for layer in (0, 1) for table in "uv"}
    assert measure(model, HeldOut(corpus, MEASURE, LENGTH))["held_out_loss_nats"] < loss
