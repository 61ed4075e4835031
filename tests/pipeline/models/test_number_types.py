"""Every kind of model cast to other float types, and under autocast: it works, or refuses by name."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from kernels import backends
from pipeline.models import LanguageModel
from pipeline.models.monet import MonetRouting
from pipeline.models.peer import gates
from pipeline.models.peer.router import PeerRouter
from tests.tiny import EVERY_KIND, INT4, JUMP, tiny_model, tiny_tokens
from tests.tiny_symbols import symbols_model

FEATURES = JUMP.model_copy(
    update={
        "query_norm": False, "sub_keys": "identity", "d_key": JUMP.num_keys, "score_features": 7, "score_terms": 3,
    }
)  # fmt: skip
MADE: dict[str, Callable[[], LanguageModel]] = {
    **{name: lambda spec=spec: tiny_model(spec) for name, spec in EVERY_KIND.items()},
    "peer-features": lambda: tiny_model(FEATURES),
    "float32 tables": lambda: tiny_model(JUMP.model_copy(update={"precision": "float32"})),
    "bfloat16 tables": lambda: tiny_model(JUMP.model_copy(update={"precision": "bfloat16"})),
    "int4-groups": lambda: tiny_model(INT4.model_copy(update={"scale_groups": 3})),
    "symbols": symbols_model,
}
CASTS: dict[str, tuple[torch.dtype, Callable[[LanguageModel], nn.Module]]] = {
    "bfloat16": (torch.bfloat16, lambda model: model.bfloat16()),
    "half": (torch.float16, lambda model: model.half()),
    "half and back": (torch.float32, lambda model: model.half().float()),
    "bfloat16 and back": (torch.float32, lambda model: model.bfloat16().float()),
    "double and back": (torch.float32, lambda model: model.double().float()),
}
TAKE_HALF = ("dense", "monet-horizontal", "monet-vertical", "symbols")
"""The others' experts are summed by expert_sum, which refuses float16."""


@pytest.fixture(scope="module")
def models() -> dict[str, LanguageModel]:
    return {name: make() for name, make in MADE.items()}


@pytest.fixture(params=["stock", "C++"])
def path(request, monkeypatch) -> str:
    """Without the C++ library and with it, in the best instruction set alone: types are checked before any of them."""
    library = None if request.param == "stock" else request.getfixturevalue("best_library")
    monkeypatch.setattr(backends, "cpu_library", lambda: library)
    return request.param


def _tokens(model: LanguageModel) -> torch.Tensor:
    return tiny_tokens(vocab_size=model.shape.vocab_size)


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_a_model_that_is_cast_works_or_refuses_by_name(models, path, name, cast):
    dtype, to = CASTS[cast]
    model = copy.deepcopy(models[name])
    to(model)
    if cast == "half" and name not in TAKE_HALF:
        with pytest.raises(ValueError, match=r"expert_sum got x_TD .*float16; it takes .*float32, float64 or bfloat16"):
            model(_tokens(model))
        return
    logits_BTV = model(_tokens(model))
    assert logits_BTV.dtype == dtype
    assert bool(torch.isfinite(logits_BTV).all())


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("name", MADE)
def test_a_cast_leaves_statistics_thresholds_scales_and_tables_as_they_were(models, name, cast):
    model = copy.deepcopy(models[name])
    CASTS[cast][1](model)
    for key, tensor in models[name].named_buffers():
        now = model.get_buffer(key)
        assert now.dtype == tensor.dtype
        assert torch.equal(now, tensor)


@pytest.mark.parametrize("name", MADE)
def test_a_model_cast_and_cast_back_is_written_and_read_again(models, name):
    model = copy.deepcopy(models[name]).half().float()
    again = LanguageModel.restore(model.kind, model.spec.model_dump(mode="json"), model.to_tensors(), {})
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def _relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", MADE)
@torch.no_grad()
def test_experts_in_bfloat16_give_what_the_same_numbers_give_in_float32(models, path, name, autocast):
    """On each block's own inputs and routing: a bfloat16 has 8 bits, 0.4 % of rounding an operation."""
    narrow = copy.deepcopy(models[name])
    wide = narrow if autocast else copy.deepcopy(narrow.bfloat16()).float()
    tokens_BT = _tokens(narrow)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        trace = narrow.trace(tokens_BT)
    for block, x_ND, routing, y_ND in zip(
        wide.blocks(), trace.expert_inputs, trace.routings, trace.expert_outputs, strict=True
    ):
        assert _relative_error(y_ND, block.moe(x_ND.float(), _float32(routing))) < 0.02


def _float32(routing: object) -> object:
    """It, with gates of float32 where they are tensors."""
    if isinstance(routing, MonetRouting):
        return MonetRouting(routing.gate1_NHI.float(), routing.gate2_NHJ.float())
    return routing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [name for name in MADE if name not in ("dense", "monet-horizontal", "monet-vertical")])
@torch.no_grad()
def test_autocast_reaches_neither_peer_routers_nor_their_experts(models, path, name, dtype):
    model = models[name]
    tokens_BT = _tokens(model)
    inputs = model.trace(tokens_BT).expert_inputs
    plain = model.expert_outputs(inputs, tokens_BT)
    with torch.autocast("cpu", dtype=dtype):
        under = model.expert_outputs(inputs, tokens_BT)
        model(tokens_BT)
    assert all(torch.equal(one, other) for one, other in zip(plain, under, strict=True))


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("symbols", "int4-groups")])
def test_a_step_of_training_under_autocast_and_in_bfloat16_has_finite_gradients(models, name):
    for autocast in (True, False):
        model = copy.deepcopy(models[name]).train()
        model = model if autocast else model.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits_BTV = model(_tokens(model))
        logits_BTV.float().square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


@torch.no_grad()
def test_a_router_in_cpp_takes_no_states_of_another_type(models, best_library):
    router = next(block.router for block in models["peer-features"].blocks() if block.router is not None)
    assert isinstance(router, PeerRouter)
    made, _ = gates._made_ready(router, best_library)
    with pytest.raises(ValueError, match=r"jump_router got states, .* of torch.bfloat16"):
        made.route(torch.zeros(2, 12, dtype=torch.bfloat16))
