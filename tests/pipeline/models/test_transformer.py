"""The transformer: no look ahead, no sequence sees another, and a trace holds what experts read and add."""

import pytest
import torch
from pydantic import ValidationError

from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.transformer import RMSNorm, TransformerShape, TransformerSpec
from tests.tiny import DENSE, EVERY_KIND, tiny_model, tiny_tokens


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
