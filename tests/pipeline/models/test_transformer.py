"""The transformer: no look ahead, positions are relative, grouped heads are heads with shared keys and values."""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.attention import rotary, rotate
from pipeline.models.transformer import RMSNorm, TransformerShape, TransformerSpec
from tests.tiny import DENSE, EVERY_KIND, SHAPE, tiny_model, tiny_tokens
from tests.tolerances import assert_close

SPEC = TransformerSpec(**SHAPE.model_dump(), vocab_size=23)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_later_token_changes_no_earlier_logit(kind):
    model = tiny_model(EVERY_KIND[kind])
    tokens = tiny_tokens()
    changed = tokens.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 23
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-5, atol=1e-5)
    assert (after[:, 4:] - before[:, 4:]).abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_sequences_of_a_batch_do_not_see_each_other(kind):
    model = tiny_model(EVERY_KIND[kind])
    tokens = tiny_tokens()
    with torch.no_grad():
        together, alone = model(tokens), model(tokens[1:2])
    assert together.shape == (3, 7, 23)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-5, atol=1e-5)


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


def test_rms_norm_leaves_a_mean_square_of_one_times_its_weight():
    norm = RMSNorm(12, 1e-6).double()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 12))
    x = 3 * torch.randn(7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = norm(x) / norm.weight
    torch.testing.assert_close(y.square().mean(-1), torch.ones(7, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y / x, (y / x)[:, :1].expand_as(x))


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_trace_holds_what_the_experts_read_and_add(kind):
    model, tokens = tiny_model(EVERY_KIND[kind]), tiny_tokens()
    with torch.no_grad():
        trace = model.trace(tokens)
        again = model.expert_outputs(trace.expert_inputs, tokens)
        assert torch.equal(trace.logits_BTV, model(tokens))
    assert [y.shape for y in trace.expert_outputs] == [(21, 12)] * 3
    for got, wanted in zip(again, trace.expert_outputs, strict=True):
        assert torch.equal(got, wanted)
        assert wanted.abs().max() > 1e-3


def test_residual_projections_start_smaller_in_deeper_models():
    deviations = {}
    for layers in (1, 16):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shape = TransformerShape(d_model=60, num_layers=layers, num_heads=3, num_kv_heads=3)
            spec = ModelSpec(transformer=TransformerSpec(**shape.model_dump(), vocab_size=5), experts=DENSE)
            deviations[layers] = LanguageModel(spec).blocks()[0].self_attn.o_proj.weight.std().item()
    assert deviations[1] / deviations[16] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"d_model": 100, "num_heads": 8}, "d_model=100 is not a multiple of 2 \\* num_heads=16"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 is not a multiple of num_kv_heads=3"),
    ],
)
def test_heads_must_divide(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        TransformerShape(**wrong)
