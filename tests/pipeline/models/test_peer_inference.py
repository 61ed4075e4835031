"""A jump router in evaluation without gradients is the one that trains: same pairs, same gates, same biases."""

import copy

import pytest
import torch

from pipeline.models.peer.experts import AxisBias
from pipeline.models.peer.gates import threshold_for
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PassingKeys
from pipeline.models.peer.spec import PeerSpec
from tests.tolerances import assert_close

# N tokens, D model width, H heads

N, D, H = 300, 12, 3
TOKENS = torch.zeros(1, N, dtype=torch.int64)
IDENTITY = {"sub_keys": "identity", "d_key": 9, "query_norm": False}
SPECS = {
    "rows of the state": IDENTITY,
    "few features": IDENTITY | {"score_features": 7, "score_terms": 3, "aspect": 2},
    "all features": IDENTITY | {"score_features": 7},
    "keys of each head behind a query norm": {"d_key": 5, "aspect": 2, "tie_margin": 0.05},
    "shared keys": {"d_key": 5, "sub_keys": "shared", "query_norm": False, "tie_margin": 0.1},
}


def made(changes, *, pairs=4.0, seed=0) -> tuple[PeerRouter, torch.Tensor]:
    """A router with statistics and thresholds of its own inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router = PeerRouter(PeerSpec(num_keys=9, num_heads=H, active_keys=3, gate="jumprelu", **changes), D)
    generator = torch.Generator().manual_seed(seed)
    x_ND = 2 * torch.randn(N, D, generator=generator)
    with torch.no_grad():
        if router.spec.score_features:
            router.query.bias.copy_(torch.randn(len(router.query.bias), generator=generator))
        if router.spec.score_terms:
            keep_SR = torch.rand(router.query.weight.shape, generator=generator).argsort(1) < router.spec.score_terms
            router.query.weight.mul_(keep_SR)
        for _ in range(60):
            router.train()(x_ND, TOKENS)
        # A little beside the pair that lies on it, where rounding would decide.
        router.threshold_H.copy_(threshold_for(*router.eval().log_gates(x_ND), pairs) + 1e-4)
    return router, x_ND


def pairs_of(routing):
    token_P = torch.repeat_interleave(torch.arange(N), routing.start_N1.diff())
    return list(zip(token_P.tolist(), routing.cell_P.tolist(), strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_both_ways_give_the_same_routing(name):
    router, x_ND = made(SPECS[name])
    trained = router(x_ND, TOKENS)
    with torch.no_grad():
        plain = router(x_ND, TOKENS)
    assert isinstance(plain.axes, PassingKeys)
    assert pairs_of(plain) == pairs_of(trained)
    assert_close(plain.gate_P, trained.gate_P, 1e-5)
    for one, other in ((plain.log_gate1_NHI, trained.log_gate1_NHI), (plain.log_gate2_NHJ, trained.log_gate2_NHJ)):
        assert torch.equal(torch.isfinite(one), torch.isfinite(other))
        passes = torch.isfinite(other)
        assert_close(one[passes], other[passes], 1e-5)
    assert 0 < len(plain.cell_P) < len(plain.axes.score_Q) ** 2


@pytest.mark.parametrize("name", SPECS)
def test_decisions_differ_at_most_where_rounding_decides(name):
    """Thresholds on pairs themselves: then a last bit decides whether the pair fires."""
    router, x_ND = made(SPECS[name])
    row_NHI, column_NHJ = router.log_gates(x_ND)
    sum_NHC = (row_NHI[..., :, None] + column_NHJ[..., None, :]).flatten(2)
    router.threshold_H.copy_(sum_NHC.amax(-1).quantile(0.5, dim=0, interpolation="nearest"))
    trained = router(x_ND, TOKENS)
    with torch.no_grad():
        plain = router(x_ND, TOKENS)
    for token, cell in set(pairs_of(plain)) ^ set(pairs_of(trained)):
        assert (sum_NHC[token, :, cell] - router.threshold_H).abs().min() < 1e-5


def test_axis_biases_are_those_of_the_dense_gates_and_learn_from_a_routing_made_without_gradients():
    router, x_ND = made(SPECS["few features"])
    bias = AxisBias(router.spec, D)
    torch.nn.init.normal_(bias.row, generator=torch.Generator().manual_seed(1))
    torch.nn.init.normal_(bias.column, generator=torch.Generator().manual_seed(2))
    wanted = bias(router(x_ND, TOKENS))
    with torch.no_grad():
        routing = router(x_ND, TOKENS)
        assert_close(bias(routing), wanted, 1e-5)
    learning = bias(routing)
    assert_close(learning, wanted, 1e-5)
    learning.square().sum().backward()
    assert bias.row.grad.abs().max() > 0


def rewritten(router):
    router.query.weight.mul_(2)


def loaded(router):
    other, _ = made(SPECS["few features"], seed=3)
    router.load_state_dict(other.state_dict())


def swapped(router):
    router.query.weight.data = router.query.weight.data.flip(0).clone()


def other_intercept(router):
    router.query.bias.add_(torch.linspace(-1, 1, len(router.query.bias)))


def other_parameter(router):
    router.query.weight = torch.nn.Parameter(router.query.weight.flip(0))


@torch.no_grad()
@pytest.mark.parametrize("change", [rewritten, loaded, swapped, other_intercept, other_parameter])
def test_compact_rows_follow_their_weights(change):
    router, x_ND = made(SPECS["few features"])
    before = router(x_ND, TOKENS)
    assert router.compact_rows() is router.compact_rows()
    copied = copy.deepcopy(router)
    change(router)
    after = router(x_ND, TOKENS)
    assert pairs_of(after) != pairs_of(before)
    fresh = PeerRouter(router.spec, D).eval()
    fresh.load_state_dict(router.state_dict())
    assert pairs_of(after) == pairs_of(fresh(x_ND, TOKENS))
    assert pairs_of(copied(x_ND, TOKENS)) == pairs_of(before)


@torch.no_grad()
def test_a_router_in_double_precision_takes_its_rows_along():
    router, x_ND = made(SPECS["few features"])
    single = router(x_ND, TOKENS)
    double = router.double()(x_ND.double(), TOKENS)
    assert double.gate_P.dtype == torch.float64
    assert pairs_of(double) == pairs_of(single)


@torch.no_grad()
def test_no_tokens_reach_nothing():
    router, x_ND = made(SPECS["few features"])
    routing = router(x_ND[:0], TOKENS[:, :0])
    assert len(routing.cell_P) == 0
    assert routing.start_N1.tolist() == [0]
    assert routing.log_gate2_NHJ.shape == (0, H, 18)


@torch.no_grad()
def test_a_state_that_is_not_a_number_is_refused():
    router, x_ND = made(SPECS["few features"])
    x_ND[7, 3] = torch.nan
    with pytest.raises(ValueError, match="the model diverged"):
        router(x_ND, TOKENS)
