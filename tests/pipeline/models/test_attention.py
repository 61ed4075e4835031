"""Attention: the default against its sum written out, recipes that do not name it, and another one from outside."""

import json
import math

import pytest
import torch

from artifacts import ArtifactError, Recipe, Store
from artifacts.fingerprint import canonical_json
from pipeline import codec
from pipeline.measuring.held_out import MeasureConfig
from pipeline.models import ModelSpec
from pipeline.models.attention import SoftmaxAttentionSpec, rotary, rotate
from pipeline.models.transformer import ATTENTIONS, TransformerShape, TransformerSpec
from pipeline.stage import run_stage
from pipeline.training.config import TrainingConfig
from stages.chain import CHAIN
from stages.command import read_stage
from stages.presets import PRESETS
from stages.train_dense import TrainDenseConfig, train_dense
from tests.circumstance import CIRCUMSTANCE
from tests.plus_one_attention import KIND, PlusOneSpec
from tests.tiny import DENSE, SHAPE, tiny_corpus, tiny_tokens
from tests.tolerances import assert_close

SPEC = TransformerSpec(**SHAPE.model_dump(), vocab_size=23)


def test_rotated_scores_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q_K, k_K = torch.randn(2, 6, dtype=torch.float64, generator=generator)
    turn = rotary(11, 6, 10_000.0, torch.device("cpu"))
    q_TK, k_TK = (rotate(x.expand(1, 1, 11, 6), turn)[0, 0] for x in (q_K, k_K))
    score_TT = q_TK @ k_TK.T
    by_distance = [score_TT.diagonal(-distance) for distance in range(-10, 11)]
    for diagonal in by_distance:
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert torch.stack([d[0] for d in by_distance]).std() > 0.1


def test_a_rotation_keeps_lengths_and_leaves_the_first_position():
    x = torch.randn(2, 3, 11, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary(11, 6, 100.0, torch.device("cpu")))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_a_rotation_turns_each_pair_by_its_own_angle():
    """Pair f of the halves turns by position * theta^(-2 f / width), as complex numbers do."""
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angle = torch.arange(5)[:, None] * torch.tensor([100.0 ** (-2 * f / 6) for f in range(3)])
    wanted = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle).double(), angle.double())
    got = rotate(x, rotary(5, 6, 100.0, torch.device("cpu")))
    assert_close(got, torch.cat([wanted.real, wanted.imag], -1), 1e-6)


def attention(spec):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widths = {"d_model": spec.d_model, "num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads}
        return spec.attention.layer(**widths).double()


def test_attention_is_the_softmax_over_earlier_positions_written_out():
    layer, turn = attention(SPEC), rotary(7, 4, SPEC.rope_theta, torch.device("cpu"))
    x_TD = torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    q, k, v = (proj(x_TD).view(7, -1, 4) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k = (rotate(z.transpose(0, 1)[None], turn)[0].transpose(0, 1) for z in (q, k))
    mixed = torch.zeros(7, 3, 4, dtype=torch.float64)
    for t in range(7):
        for h in range(3):
            share = torch.softmax(torch.stack([q[t, h] @ k[s, 0] / math.sqrt(4) for s in range(t + 1)]), 0)
            mixed[t, h] = sum(share[s] * v[s, 0] for s in range(t + 1))
    assert_close(layer(x_TD[None], turn)[0], layer.o_proj(mixed.flatten(1)), 1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_grouped_attention_is_full_attention_with_repeated_keys_and_values(groups):
    shape = SHAPE.model_dump() | {"d_model": 24, "num_heads": 6, "num_kv_heads": groups}
    grouped = attention(TransformerSpec(**shape, vocab_size=23))
    full = attention(TransformerSpec(**(shape | {"num_kv_heads": 6}), vocab_size=23))
    state = grouped.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        state[name] = state[name].view(groups, 4, 24).repeat_interleave(6 // groups, 0).flatten(0, 1)
    full.load_state_dict(state)
    x_BTD = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turn = rotary(7, 4, 10_000.0, torch.device("cpu"))
    assert_close(grouped(x_BTD, turn), full(x_BTD, turn), 1e-13)


SPELT_OUT = (
    '{"d_model":12,"num_layers":3,"num_heads":3,"num_kv_heads":1,"rope_theta":10000.0,"norm_eps":1e-6,"vocab_size":23}'
)
"""A spec as it was written before there was another attention."""


def test_the_default_stands_in_no_spec_and_a_spec_without_one_has_it():
    assert SPEC.model_dump_json() == SPELT_OUT
    assert json.dumps(SPEC.model_dump(mode="json"), separators=(",", ":")) == SPELT_OUT.replace("1e-6", "1e-06")
    assert TransformerSpec.model_validate_json(SPELT_OUT).attention == SoftmaxAttentionSpec()
    assert TransformerShape(attention={"kind": "softmax"}) == TransformerShape()


@pytest.mark.parametrize("preset", PRESETS)
def test_no_recipe_of_a_preset_names_its_attention(preset):
    plan = PRESETS[preset]()
    for step in CHAIN:
        assert "attention" not in canonical_json(plan.config_of(step)), step.name


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, KIND, PlusOneSpec)


def test_an_attention_is_read_by_its_kind_with_its_own_fields(known):
    shape = TransformerShape(attention={"kind": KIND, "plus": 3.0})
    assert shape.attention == PlusOneSpec(plus=3.0)
    assert shape.model_dump(mode="json")["attention"] == {"kind": KIND, "plus": 3.0}
    assert TransformerShape.model_validate_json(shape.model_dump_json()) == shape
    assert TransformerSpec(**shape.model_dump(), vocab_size=5).attention == shape.attention
    with pytest.raises(ValueError, match="plus"):
        TransformerShape(attention={"kind": KIND, "plus": -1.0})
    with pytest.raises(ValueError, match="unknown kind of attention 'none'; known are: softmax, softmax-plus-one"):
        TransformerShape(attention={"kind": "none"})


def test_the_command_line_takes_an_attention_by_its_kind(known):
    command = read_stage(["train-dense", "--config.transformer.attention.kind", KIND])
    assert command.config.transformer.attention == PlusOneSpec()
    assert read_stage(["train-dense"]).config.transformer.attention == SoftmaxAttentionSpec()


def test_an_attention_from_outside_trains_and_is_opened_again(known, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    corpus = tiny_corpus()
    corpus_id = store.publish(
        recipe=Recipe(stage="prepare-corpus", stage_version=1, config={}, seed=0, inputs={}), kind=corpus.kind,
        spec=corpus.spec.model_dump(mode="json"), tensors=corpus.to_tensors(), metrics={}, files=corpus.to_files(),
        circumstance=CIRCUMSTANCE,
    )  # fmt: skip
    shape = SHAPE.model_copy(update={"attention": PlusOneSpec(plus=2.0)})
    config = TrainDenseConfig(
        transformer=shape,
        mlp=DENSE,
        training=TrainingConfig(steps=4, batch_size=3, context_length=16, warmup_steps=1),
        measure=MeasureConfig(tokens=256),
    )
    made = run_stage(train_dense, config, inputs={"corpus": corpus_id}, store=store)
    artifact = store.open(made.id)
    assert artifact.lineage.config["transformer"]["attention"] == {"kind": KIND, "plus": 2.0}
    model = codec.load(artifact)
    assert isinstance(model.spec, ModelSpec)
    assert model.spec.transformer.attention == PlusOneSpec(plus=2.0)
    scale_H11 = model.blocks()[0].self_attn.scale_H11
    assert 0 < (scale_H11 - 1).abs().max() < 0.1  # it has learned
    tokens = tiny_tokens()
    with torch.no_grad():
        sink = model(tokens)
        for block in model.blocks():
            block.self_attn.plus = 1e9  # all weight to nothing
            assert block.self_attn(torch.randn(1, 5, 12), rotary(5, 4, 1e4, torch.device("cpu"))).abs().max() < 1e-6
        assert not torch.equal(model(tokens), sink)
    monkeypatch.delitem(ATTENTIONS, KIND)
    with pytest.raises(ArtifactError, match="unknown kind of attention 'softmax-plus-one'; known are: softmax"):
        codec.load(store.open(made.id))
