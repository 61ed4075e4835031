"""Gates: what every entry promises, and one from outside that is nothing but an entry."""

import re
from pathlib import Path
from typing import get_args

import pytest
import torch

from pipeline.measuring.held_out import HeldOut, MeasureConfig
from pipeline.measuring.routing import measure_routing
from pipeline.models.peer.gates import GATES, GateName
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.symbolic.exporting import export
from pipeline.symbolic.names.naming import high_scores
from pipeline.symbolic.recording import Events, LayerRecord
from tests.best_pair_gate import BestPair
from tests.tiny import SOFTMAX, tiny_corpus, tiny_model, tiny_tokens

# N tokens, D model width, H heads, n sub-keys of the rows, J of the columns
N, D, H, n, K = 60, 12, 3, 7, 2
TOKENS = torch.zeros(1, N, dtype=torch.int64)


def router_of(gate: str, **changes) -> tuple[PeerRouter, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fields = {"num_keys": n, "aspect": 2, "num_heads": H, "d_key": 5, "pairs_per_head": K, "active_keys": 3}
        return PeerRouter(PeerSpec(**(fields | {"gate": gate} | changes)), D).eval(), torch.randn(N, D)


def test_every_name_has_an_entry_and_the_c_program_numbers_those_that_it_has():
    assert get_args(GateName) == tuple(GATES)
    source = Path(export.__file__).with_name("runtime.c").read_text(encoding="utf-8")
    names = re.search(r"enum \{ ([A-Z, ]+) \}; +/\* its gate \*/", source)
    assert names is not None
    known = {gate.runtime_code: name.upper() for name, gate in GATES.items() if gate.runtime_code is not None}
    assert known == dict(enumerate(names[1].split(", ")))


@torch.no_grad()
@pytest.mark.parametrize("name", GATES)
def test_a_pair_fires_only_where_its_row_and_its_column_are_high(name):
    router, x_ND = router_of(name)
    router.gate.fit(router, x_ND)
    high = [high_NHX.any(1) for high_NHX in router.gate.high(router, router.scores(x_ND))]
    assert all(0 < high_NX.float().mean() < 1 for high_NX in high)
    routing = router(x_ND, TOKENS)
    token_P = torch.repeat_interleave(torch.arange(N), routing.start_N1.diff())
    assert len(token_P) > N
    for high_NX, key_P in zip(high, (routing.cell_P // (2 * n), routing.cell_P % (2 * n)), strict=True):
        assert bool(high_NX[token_P, key_P].all())


@torch.no_grad()
@pytest.mark.parametrize("name", GATES)
def test_heads_reach_as_many_pairs_as_they_aim_at(name):
    router, x_ND = router_of(name)
    router.gate.aim(router, [router(part_ND, TOKENS) for part_ND in x_ND.split(25)])
    # A threshold is one of the sums it is compared with, and of equal ones it cuts them all.
    assert len(router(x_ND, TOKENS).cell_P) == pytest.approx(N * H * K, abs=H)
    router.gate.fit(router, 3 * x_ND)
    assert len(router(3 * x_ND, TOKENS).cell_P) == pytest.approx(N * H * K, abs=H)


@pytest.mark.parametrize("name", GATES)
def test_statistics_that_are_held_stay_in_training_and_others_move(name):
    router, x_ND = router_of(name, query_norm=False)
    kept = {key: tensor.clone() for key, tensor in router.state_dict().items() if "running" in key}
    router.train()
    router.gate.hold_statistics(router)
    router(x_ND, TOKENS)
    assert all(torch.equal(router.state_dict()[key], tensor) for key, tensor in kept.items())
    router.train()
    router(x_ND, TOKENS)
    assert not any(torch.equal(router.state_dict()[key], tensor) for key, tensor in kept.items())
    assert (router.gate.cuts(router) is None) == (not kept)


def test_a_gate_from_outside_is_one_entry(monkeypatch):
    monkeypatch.setitem(GATES, "best-pair", BestPair())
    spec = SOFTMAX.model_copy(update={"gate": "best-pair"})
    model = tiny_model(spec, vocab_size=256)
    tokens = tiny_tokens(vocab_size=256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(4):
        logits = model.train()(tokens[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert model.blocks()[0].router.row_keys.grad.abs().max() > 0
    held_out = HeldOut(corpus=tiny_corpus(), config=MeasureConfig(tokens=256), context_length=16)
    numbers = measure_routing(model.eval(), held_out)
    assert numbers["active_experts_per_token"] == pytest.approx(spec.num_heads * 37 / 25, rel=0.5)  # 37 in 25 cells
    assert "firing_mismatches" not in numbers
    x_ND = model.trace(tokens).expert_inputs[0].detach()
    context_ON = torch.stack([tokens.flatten(), tokens.flatten()])
    nothing = torch.zeros(0)
    events = Events(token_P=nothing.long(), start_E1=torch.zeros(2, dtype=torch.int64), context_ON=context_ON)
    record = LayerRecord(x_ND=x_ND, events=events, gate_P=nothing, pre_PM=nothing[:, None])
    found = high_scores(model.blocks()[0].router, record)
    assert len(found.events.token_P) == len(x_ND) * 2 * spec.num_heads  # one row and one column a head
