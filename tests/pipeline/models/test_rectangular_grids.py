"""PEER on grids of more columns than rows against a search over every cell; and sub-keys that miss by a tie's width."""

import pytest
import torch
from pydantic import ValidationError

from pipeline.models.axis_threshold import passing_logits
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from tests.tolerances import assert_close

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, Q width of a sub-key, K pairs a head
N, D, H, I, Q, K = 11, 12, 3, 5, 6, 3
TOKENS = torch.zeros(1, N, dtype=torch.int64)
KEYS = ["per-head", "shared", "identity"]


def spec_of(aspect, keys="per-head", **changes):
    return PeerSpec(
        **({"num_keys": I, "aspect": aspect, "num_experts": I * I * aspect, "num_heads": H, "sub_keys": keys,
            "d_key": I if keys == "identity" else Q, "pairs_per_head": K, "active_keys": 2} | changes)
    )  # fmt: skip


def layer(spec, seed=0):
    """Router and experts in float64 and evaluation, biases and batch-norm statistics nontrivial, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        router, experts = PeerRouter(spec, D).double().eval(), PeerExperts(spec, D).double().eval()
        with torch.no_grad():
            experts.bias.normal_()
            for module in router.modules():
                if isinstance(module, torch.nn.BatchNorm1d):
                    module.running_mean.normal_(std=0.3)
                    module.running_var.uniform_(0.5, 1.5)
        return router, experts, torch.randn(N, D, dtype=torch.float64)


def scores_of(router, x_D, h):
    """(I), (J) scores of a head, written out."""
    spec, norm = router.spec, router.query_norm
    query = (router.query.weight @ x_D - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    row_width, column_width = (I, spec.num_columns) if spec.sub_keys == "identity" else (Q, Q)
    row_query_HQ = query[: H * row_width].view(H, row_width)
    column_query_HQ = query[H * row_width :].view(H, column_width)
    if spec.sub_keys == "identity":
        return row_query_HQ[h], column_query_HQ[h]
    own = 0 if spec.sub_keys == "shared" else h
    return router.row_keys[own] @ row_query_HQ[h], router.column_keys[own] @ column_query_HQ[h]


@pytest.mark.parametrize("aspect", [2, 3])
@pytest.mark.parametrize("keys", KEYS)
def test_softmax_peer_is_the_best_of_all_cells(keys, aspect):
    """Experts lie one a cell, and the cell of row r and column c is r * J + c."""
    spec = spec_of(aspect, keys)
    router, experts, x_ND = layer(spec)
    wanted = torch.zeros(N, D, dtype=torch.float64)
    columns_used = set()
    for t in range(N):
        for h in range(H):
            row_I, column_J = scores_of(router, x_ND[t], h)
            assert (len(row_I), len(column_J)) == (I, I * aspect)
            score = {(r, c): row_I[r] + column_J[c] for r in range(I) for c in range(I * aspect)}
            best = sorted(score, key=lambda cell: -score[cell].item())[:K]
            gates = torch.softmax(torch.stack([score[cell] for cell in best]), 0)
            for gate, (r, c) in zip(gates, best, strict=True):
                e = r * I * aspect + c
                hidden = torch.nn.functional.gelu(experts.u[e] @ x_ND[t] + experts.bias[e])
                wanted[t] += gate * hidden * experts.v[e]
                columns_used.add(c)
    assert_close(experts(x_ND, router(x_ND, TOKENS)), wanted, 1e-12)
    assert max(columns_used) >= I  # columns that a square grid does not have


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("threshold", [-4.0, -2.0])
def test_a_jump_router_fires_exactly_the_pairs_above_its_threshold(keys, threshold):
    router, _, x_ND = layer(spec_of(2, keys, gate="jumprelu"))
    router.threshold_H.copy_(threshold + torch.tensor([0.0, 0.3, -0.2]))
    row_NHI, column_NHJ = router.log_gates(x_ND)
    assert (row_NHI.shape, column_NHJ.shape) == ((N, H, I), (N, H, 2 * I))
    routing = router(x_ND, TOKENS)
    for t in range(N):
        pairs = slice(int(routing.start_N1[t]), int(routing.start_N1[t + 1]))
        got = sorted(zip(routing.cell_P[pairs].tolist(), routing.gate_P[pairs].tolist(), strict=True))
        wanted = sorted(
            (r * 2 * I + c, (row_NHI[t, h, r] + column_NHJ[t, h, c]).exp().item())
            for h in range(H)
            for r in range(I)
            for c in range(2 * I)
            if row_NHI[t, h, r] + column_NHJ[t, h, c] > router.threshold_H[h]
        )
        assert [cell for cell, _ in got] == [cell for cell, _ in wanted]
        assert [gate for _, gate in got] == pytest.approx([gate for _, gate in wanted], rel=1e-12)
    assert 0 < len(routing.cell_P) < N * H * 2 * I * I
    assert routing.cell_P.max() < 2 * I * I


def test_log_gates_of_an_axis_are_those_of_the_scores_that_pass():
    """Of either axis the same share of its sub-keys passes on average, whatever their number."""
    router, _, _ = layer(spec_of(3, gate="jumprelu", query_norm=False))
    x_ND = torch.randn(900, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    router.train()
    with torch.no_grad():
        gates = router.log_gates(x_ND)
        scores = router.scores(x_ND)
    for log_gate_NHX, score_NHX in zip(gates, scores, strict=True):
        assert_close(log_gate_NHX.exp().sum(-1), torch.ones(900, H, dtype=torch.float64), 1e-12)
        passes_NHX = torch.isfinite(log_gate_NHX)
        assert passes_NHX.double().mean().item() == pytest.approx(2 / 5, abs=0.03)
        least_N = torch.where(passes_NHX, score_NHX, torch.inf).amin(-1)
        assert torch.equal(passes_NHX, score_NHX >= least_N[..., None])


@pytest.mark.parametrize("gate", ["softmax", "jumprelu"])
@pytest.mark.parametrize("keys", ["per-head", "shared"])
def test_gradients_reach_the_keys_of_both_axes(keys, gate):
    router, experts, x_ND = layer(spec_of(2, keys, gate=gate))
    experts(x_ND, router(x_ND, TOKENS)).square().sum().backward()
    assert router.row_keys.grad.shape[1:] == (I, Q)
    assert router.column_keys.grad.shape[1:] == (2 * I, Q)
    for parameter in [*router.parameters(), *experts.parameters()]:
        assert parameter.grad.abs().max() > 0
    assert router.column_keys.grad[:, I:].abs().max() > 0


def test_gradients_of_the_row_and_column_keys_are_those_of_finite_differences():
    router, experts, x_ND = layer(spec_of(2))

    def total():
        return experts(x_ND, router(x_ND, TOKENS)).square().sum()

    total().backward()
    generator, size = torch.Generator().manual_seed(6), 1e-6
    for keys in (router.row_keys, router.column_keys):
        direction = torch.randn(keys.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            keys += size * direction
            above = total()
            keys -= 2 * size * direction
            below = total()
            keys += size * direction
        # The error of a central difference is of the order of size**2, its rounding 1e-16 / size.
        assert ((above - below) / (2 * size)).item() == pytest.approx((keys.grad * direction).sum().item(), rel=1e-6)


def test_axis_biases_of_a_wide_grid_are_weighted_by_the_gates_of_their_axis():
    router, experts, x_ND = layer(spec_of(2, gate="jumprelu", axis_bias=True))
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for bias, count in ((experts.axis_bias.row, I), (experts.axis_bias.column, 2 * I)):
            assert bias.shape == (count, D)
            bias.copy_(torch.randn(count, D, generator=generator))
        routing = router(x_ND, TOKENS)
        biased = experts(x_ND, routing)
        row, column = experts.axis_bias.row.clone(), experts.axis_bias.column.clone()
        experts.axis_bias.row.zero_(), experts.axis_bias.column.zero_()
        plain = experts(x_ND, routing)
    row_NHI, column_NHJ = (gate.exp() for gate in (routing.log_gate1_NHI, routing.log_gate2_NHJ))
    wanted = torch.einsum("nhi,id->nd", row_NHI, row) + torch.einsum("nhj,jd->nd", column_NHJ, column)
    assert_close(biased - plain, wanted, 1e-12)


@pytest.mark.parametrize("num_experts", [1, 17, 50, 131])
def test_the_cells_of_a_wide_grid_hold_every_expert_once(num_experts):
    index = CellIndex(spec_of(2, num_experts=num_experts))
    assert len(index.stored.row()) == 2 * I * I + 1
    cell_E = index.cell_of_experts()
    assert len(cell_E) == num_experts
    assert torch.equal(cell_E.sort().values, cell_E)
    counts_C = torch.bincount(cell_E, minlength=2 * I * I)
    assert counts_C.max() - counts_C.min() <= 1


def test_an_aspect_of_one_is_the_square_grid():
    square = PeerSpec(num_keys=I, num_experts=25, d_key=Q, pairs_per_head=K, active_keys=2)
    assert (square.aspect, square.num_columns, square.num_cells) == (1, I, I * I)
    wide = square.model_copy(update={"aspect": 3})
    assert (wide.num_columns, wide.num_cells) == (3 * I, 3 * I * I)


@pytest.mark.parametrize("wrong", [{"aspect": 0}, {"aspect": 65}, {"tie_margin": -0.1}, {"tie_margin": 0.2}], ids=str)
def test_a_grid_or_a_margin_out_of_bounds_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PeerSpec(**(spec_of(2).model_dump() | wrong))


class Same(torch.nn.Module):
    """A norm that changes nothing: deviations are the scores."""

    def forward(self, logits_NHI):
        return logits_NHI


def passing(scores, margin):
    """Those of one head that pass a threshold of half a deviation."""
    kept = passing_logits(torch.tensor(scores, dtype=torch.float64)[None, None], Same(), 0.5, margin)
    return sorted(kept[torch.isfinite(kept)].tolist())


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.1])
def test_where_one_is_well_above_the_axis_threshold_the_margin_lets_nothing_below_it_pass(margin):
    assert passing([0.3, 0.5, -2.0, 0.45, 0.7, 0.4999], margin) == [0.5, 0.7]


@pytest.mark.parametrize(("margin", "wanted"), [(0.0, [0.3]), (0.01, [0.295, 0.3]), (0.1, [0.21, 0.295, 0.3])], ids=str)
def test_where_none_is_above_the_threshold_those_as_good_as_the_best_pass(margin, wanted):
    assert passing([0.3, -2.0, 0.295, 0.21, 0.1], margin) == wanted


def test_next_to_the_threshold_those_as_good_as_the_best_pass_too():
    """Of a best and its twin, either side of it by rounding, both do."""
    assert passing([0.500001, 0.499999, 0.4], 0.01) == [0.499999, 0.500001]
    assert passing([0.500001, 0.499999, 0.4], 0.0) == [0.500001]


def test_a_margin_only_adds_sub_keys_to_those_that_pass_without():
    """One of five on average: many a head has none above its threshold."""
    spec = spec_of(2, gate="jumprelu", active_keys=1)
    routers = [layer(spec.model_copy(update={"tie_margin": margin}))[0] for margin in (0.0, 0.1)]
    x_ND = torch.randn(300, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for without, with_margin in zip(*(router.log_gates(x_ND) for router in routers), strict=True):
        passes, more = torch.isfinite(without), torch.isfinite(with_margin)
        assert not (passes & ~more).any()
        assert more.sum() > passes.sum()
