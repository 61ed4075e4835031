"""What show prints of an expert is enough to compute it: by other code, in float64, on the states of real tokens."""

import json

import numpy as np
import pytest
import torch

from artifacts import Store
from pipeline.models.peer.gates import threshold_for
from pipeline.symbolic.__main__ import main
from pipeline.symbolic.showing.fired import firings
from tests import printed_experts
from tests.tiny_symbols import CONSTANT, DENSE, DROPPED, LOGIC, SPLINE, TEXT, E, symbols_model, symbols_store

# W windows, T tokens of one, N tokens, D model width, E experts

LENGTH = 27
SPARSE = {"score_features": 5, "score_terms": 3}
ROUTERS = {
    "shared, scores of the state": {},
    "shared, scores of features": SPARSE,
    "own, scores of features, ties pass": {**SPARSE, "router_group": 1, "tie_margin": 0.1, "aspect": 2},
    "own, normalised query and keys": {"router_group": 1, "sub_keys": "per-head", "d_key": 4, "query_norm": True},
    "shared, one set of keys": {"sub_keys": "shared", "d_key": 4},
    "shared, softmax": {"gate": "softmax"},
}


@torch.no_grad()
def model_of(router):
    """Its norms have seen states, its thresholds fire a few pairs, and its sums of features are sparse."""
    model = symbols_model(**router)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for layer, block in enumerate(model.blocks()):
            if block.router is None:
                continue
            scores = block.router.scores
            if scores.spec.score_features:
                for row in scores.query.weight:
                    row[torch.randperm(len(row))[scores.spec.score_terms :]] = 0
                scores.query.bias.normal_()
            if scores.spec.query_norm:
                scores.query_norm.running_mean.normal_()
                scores.query_norm.running_var.uniform_(0.5, 2)
            if scores.spec.gate == "jumprelu":
                x_ND = model.trace(windows()).expert_inputs[layer]
                for norm, score_NHI in zip((scores.norm1, scores.norm2), scores.scores(x_ND), strict=True):
                    norm.running_mean.copy_(score_NHI.mean((0, 2)))
                    norm.running_var.copy_(score_NHI.var((0, 2)))
                # Between two sums, so that rounding decides nothing.
                scores.threshold_H.copy_(threshold_for(*scores.log_gates(x_ND), 1.5) + 1e-4)
                scores.threshold_H[1] = -torch.inf if scores.spec.router_group == 1 else scores.threshold_H[1]
    return model


def windows():
    """(W, T)"""
    tokens = torch.tensor(list((TEXT * 9).encode()))
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)


@pytest.fixture(scope="module", params=ROUTERS.values(), ids=ROUTERS)
def printed(request, tmp_path_factory):
    """A store with a model, its states by block, and by block where its experts fire and how strongly."""
    model = model_of(request.param)
    store = symbols_store(tmp_path_factory.mktemp("printed") / "store", model)
    with torch.no_grad():
        trace = model.trace(windows())
    fired = []
    for layer, block in enumerate(model.blocks()):
        x_ND = trace.expert_inputs[layer]
        found = firings(block.moe, x_ND, trace.routings[layer])
        strength_EN = torch.zeros(E, len(x_ND), dtype=torch.float64)
        strength_EN[found.expert_P, found.token_P] = found.strength_P.double()
        fires_EN = torch.zeros(E, len(x_ND), dtype=torch.bool)
        fires_EN[found.expert_P, found.token_P] = True
        fired.append((fires_EN.numpy(), strength_EN.numpy(), block.moe))
    return store, [x_ND.double().numpy() for x_ND in trace.expert_inputs], fired


def shown(store: Store, capsys, layer, expert, form):
    code = main(["show", "latest", "--layer", f"{layer}", "--expert", f"{expert}", form, "--store", str(store.root)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.parametrize("layer", [0, 1])
def test_an_expert_is_computed_from_its_data_alone(printed, capsys, layer):
    store, states, fired = printed
    fires_EN, strength_EN, experts = fired[layer]
    for expert in range(DROPPED + 1):
        data = json.loads(shown(store, capsys, layer, expert, "--json"))
        gate_N = printed_experts.gates(data["fires"], states, windows().tolist())
        np.testing.assert_array_equal(gate_N > 0, fires_EN[expert])
        if expert == DROPPED:
            assert (data["fires"], data["magnitude"], data["writes"]) == ({"by": "never"}, None, None)
            continue
        magnitude_N = printed_experts.magnitudes(data["magnitude"], states)
        x_ND = torch.tensor(states[layer], dtype=torch.float32)
        wanted_N = experts.magnitudes(x_ND, torch.arange(len(x_ND)), torch.full((len(x_ND),), expert)).numpy()
        assert np.abs(magnitude_N - wanted_N).max() <= 1e-4 * np.abs(wanted_N).max()
        strength_N = gate_N * magnitude_N
        assert np.abs(strength_N - strength_EN[expert]).max() <= 1e-4 * max(1e-9, np.abs(strength_EN[expert]).max())
        assert data["writes"]["v"] == experts.v.rows(torch.tensor([expert]))[0].tolist()
        assert data["magnitude"]["times_gate"] == (expert < LOGIC)
    assert 0 < fires_EN[: SPLINE + 1].mean() < 0.9
    assert fires_EN[[DENSE, LOGIC, CONSTANT]].any(1).all()


@pytest.mark.parametrize("layer", [0, 1])
def test_an_expert_is_computed_from_its_text_alone(printed, capsys, layer):
    store, states, fired = printed
    fires_EN, strength_EN, experts = fired[layer]
    for expert in range(DROPPED):
        text = printed_experts.Text(shown(store, capsys, layer, expert, "--all"))
        gate_N = text.gates(states, windows().tolist(), layer)
        np.testing.assert_array_equal(gate_N > 0, fires_EN[expert])
        magnitude_N = text.magnitudes(states[layer])
        x_ND = torch.tensor(states[layer], dtype=torch.float32)
        wanted_N = experts.magnitudes(x_ND, torch.arange(len(x_ND)), torch.full((len(x_ND),), expert)).numpy()
        assert np.abs(magnitude_N - wanted_N).max() <= 1e-4 * np.abs(wanted_N).max()
        strength_N = gate_N * magnitude_N
        assert np.abs(strength_N - strength_EN[expert]).max() <= 1e-4 * max(1e-9, np.abs(strength_EN[expert]).max())
        assert text.v == experts.v.rows(torch.tensor([expert]))[0].tolist()
    assert "never" in shown(store, capsys, layer, DROPPED, "--all")
