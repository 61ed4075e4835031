"""Logits without experts at one position are those of whole forward passes of copies whose rows are zeros there."""

import copy

import pytest
import torch
from torch import nn

from kernels import backends
from pipeline.examining.ablated_states import FREE, FROZEN, ModelStates
from pipeline.measuring.swapped import swapped
from pipeline.models.attention import AttentionLayer
from pipeline.models.contract import ExpertLayer
from tests.tiny import EVERY_KIND, JUMP, SHAPE, tiny_model, tiny_tokens
from tests.tiny_symbols import symbols_model
from tests.tolerances import assert_close

# B windows, T tokens a window, P positions, S states, D model width, V vocabulary

KINDS = {name: EVERY_KIND[name] for name in ("dense", "peer-softmax", "peer-jumprelu", "int8", "int4")}
OWN_ROUTERS = JUMP.model_copy(update={"router_group": 1})


class Spliced(ExpertLayer):
    """A block's experts, but those of a copy on one token."""

    def __init__(self, whole, part, token):
        super().__init__()
        self.whole, self.part, self.token = whole, part, token

    num_experts = property(lambda self: self.whole.num_experts)

    def forward(self, x_ND, routing):
        y_ND = self.whole(x_ND, routing).clone()
        y_ND[self.token] = self.part(x_ND, routing)[self.token]
        return y_ND

    pairs = tables = state_bytes = check = None


Spliced.__abstractmethods__ = frozenset()


class Kept(nn.Module):
    """A router that has chosen already."""

    def __init__(self, routing):
        super().__init__()
        self.routing = routing

    def forward(self, x_ND, tokens_BT):
        return self.routing


@torch.no_grad()
def zeroed(layer, experts):
    layer = copy.deepcopy(layer)
    if hasattr(layer, "down"):
        layer.down.weight[:, experts] = 0
    elif (scales := layer.tables()["v"].scales) is not None:
        scales[experts] = 0
    else:
        layer.tables()["v"].stored[experts] = 0
    return layer


@torch.no_grad()
def by_whole_passes(model, block, tokens_BT, token, experts, frozen):
    """(V) by a forward pass of everything."""
    layer = model.blocks()[block].moe
    visits, routers = list(model.walk(tokens_BT)), [of.router for of in model.blocks()]
    try:
        if frozen:
            for of, visit in zip(model.blocks()[block + 1 :], visits[block + 1 :], strict=True):
                of.router = None if of.router is None else Kept(visit.routing)
        with swapped(model, {block: Spliced(layer, zeroed(layer, list(experts)), token)}):
            return model(tokens_BT).flatten(0, 1)[token]
    finally:
        for of, router in zip(model.blocks(), routers, strict=True):
            of.router = router


def asked(model, block, tokens_BT):
    """On some tokens, two of one window and the first of another, the two experts that add most."""
    with torch.no_grad():
        pairs = list(model.walk(tokens_BT))[block].pairs()
    norm_NE = torch.zeros(tokens_BT.numel(), model.blocks()[block].moe.num_experts)
    norm_NE.index_put_((pairs.token_P, pairs.expert_P), pairs.norm_P.float(), accumulate=True)
    best_N2 = norm_NE.topk(2).indices
    row_P = torch.tensor([13, 0, 8])
    return row_P, best_N2[row_P, 0], best_N2[row_P, 1]


def check(model, block, limit=2e-5):
    tokens_BT = tiny_tokens(vocab_size=model.shape.vocab_size)
    row_P, first_P, second_P = asked(model, block, tokens_BT)
    found = {mode: torch.zeros(len(row_P), 4, model.shape.vocab_size) for mode in (FREE, FROZEN)}
    for some in ModelStates(model=model, block=block, tokens_WT=tokens_BT).of(row_P, first_P, second_P):
        for mode, logits_PSV in some.by_mode.items():
            found[mode][some.place_P] = logits_PSV
    changed = 0
    routed = any(of.router is not None for of in model.blocks()[block + 1 :])
    for place, (row, first, second) in enumerate(zip(row_P.tolist(), first_P.tolist(), second_P.tolist(), strict=True)):
        for state, experts in enumerate([(), (first,), (second,), (first, second)]):
            for mode in (FREE, FROZEN) if routed else (FREE,):
                wanted_V = by_whole_passes(model, block, tokens_BT, row, experts, mode == FROZEN)
                assert_close(found[mode][place, state], wanted_V, limit)
        changed += not torch.allclose(found[FREE][place], found[FROZEN][place], atol=1e-4)
    return changed


@pytest.mark.parametrize("path", ["stock", "native"])
@pytest.mark.parametrize("name", [*KINDS, "symbols"])
def test_they_are_those_of_whole_forward_passes(name, path, best_library, monkeypatch):
    monkeypatch.setattr(backends, "cpu_library", lambda: best_library if path == "native" else None)
    model = symbols_model() if name == "symbols" else tiny_model(KINDS[name])
    # AVX-512 rounds a token to 15 bits for int8 and int4 tables: in blocks above the last bit may fall either way.
    check(model, 0, 1e-4 if path == "native" and "int" in name else 2e-5)


def test_frozen_routers_choose_as_with_both():
    assert check(tiny_model(OWN_ROUTERS), 0) > 0
    assert check(tiny_model(EVERY_KIND["dense"]), 0) == 0
    assert check(tiny_model(JUMP), 1) > 0


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_an_attention_at_a_position_is_what_it_is_in_the_whole_row(kv_heads):
    shape = SHAPE.model_copy(update={"num_kv_heads": kv_heads})
    model = tiny_model(JUMP, shape=shape, dtype=torch.float64)
    layer, turn = model.blocks()[1].self_attn, model.turn(tiny_tokens())
    generator = torch.Generator().manual_seed(3)
    x_BTD, x_PSD = (torch.randn(*of, 12, generator=generator, dtype=torch.float64) for of in ((3, 7), (5, 2)))
    row_P, position_P = torch.tensor([2, 0, 1, 1, 2]), torch.tensor([6, 0, 3, 1, 4])
    with torch.no_grad():
        got_PSD = layer.at(layer.memory(x_BTD, turn), row_P, position_P, x_PSD)
        general = AttentionLayer.at(layer, AttentionLayer.memory(layer, x_BTD, turn), row_P, position_P, x_PSD)
        for place, (row, position) in enumerate(zip(row_P.tolist(), position_P.tolist(), strict=True)):
            for state in range(2):
                x_TD = x_BTD[row].clone()
                x_TD[position] = x_PSD[place, state]
                assert_close(got_PSD[place, state], layer(x_TD[None], turn)[0, position], 1e-13)
    assert_close(general, got_PSD, 1e-13)
