"""PEER against a search over every cell of its grid; thresholds, shared keys, and cells with any number of experts."""

import pytest
import torch
from pydantic import ValidationError

from kernels.pairs import starts
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.gates import THRESHOLD_GAIN, threshold_for
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.registry import kind_of
from tests.tolerances import assert_close

# N tokens, D model width, H heads, n sub-keys an axis, Q width of a sub-key, E experts
N, D, H, n, Q, K = 11, 12, 3, 7, 6, 3
TOKENS = torch.zeros(1, N, dtype=torch.int64)
SOFTMAX = PeerSpec(num_keys=n, num_experts=n * n, num_heads=H, d_key=Q, pairs_per_head=K, active_keys=3)
JUMP = SOFTMAX.model_copy(update={"gate": "jumprelu"})


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


@pytest.mark.parametrize("keys", ["per-head", "shared", "identity"])
def test_softmax_peer_is_the_best_of_all_cells(keys):
    spec = SOFTMAX.model_copy(update={"sub_keys": keys, "d_key": n if keys == "identity" else Q})
    router, experts, x_ND = layer(spec)
    wanted = torch.zeros(N, D, dtype=torch.float64)
    norm = router.query_norm
    for t in range(N):
        query = (router.query.weight @ x_ND[t] - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
        row_query_HQ, column_query_HQ = query.view(2, H, -1)
        for h in range(H):
            if keys == "identity":
                row_I, column_J = row_query_HQ[h], column_query_HQ[h]
            else:
                own = 0 if keys == "shared" else h
                row_I = router.row_keys[own] @ row_query_HQ[h]
                column_J = router.column_keys[own] @ column_query_HQ[h]
            score = {(r, c): row_I[r] + column_J[c] for r in range(n) for c in range(n)}
            best = sorted(score, key=lambda cell: -score[cell].item())[:K]
            gates = torch.softmax(torch.stack([score[cell] for cell in best]), 0)
            for gate, (r, c) in zip(gates, best, strict=True):
                e = r * n + c
                hidden = torch.nn.functional.gelu(experts.u[e] @ x_ND[t] + experts.bias[e])
                wanted[t] += gate * hidden * experts.v[e]
    assert_close(experts(x_ND, router(x_ND, TOKENS)), wanted, 1e-12)


def test_gradients_reach_queries_keys_and_tables():
    router, experts, x_ND = layer(SOFTMAX)
    experts(x_ND, router(x_ND, TOKENS)).square().sum().backward()
    for parameter in [*router.parameters(), *experts.parameters()]:
        assert parameter.grad.abs().max() > 0


def test_gradients_reach_the_jump_routers_query_through_the_gates():
    router, experts, x_ND = layer(JUMP)
    router.threshold_H.fill_(-2.5)
    experts(x_ND, router(x_ND, TOKENS)).square().sum().backward()
    assert router.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("threshold", [-4.0, -2.0, -1.2])
def test_a_jump_router_fires_by_its_rule_and_no_other_way(threshold):
    router, _, x_ND = layer(JUMP)
    router.threshold_H.copy_(threshold + torch.tensor([0.0, 0.3, -0.2]))
    row_NHI, column_NHJ = router.log_gates(x_ND)
    routing = router(x_ND, TOKENS)
    for t in range(N):
        pairs = slice(int(routing.start_N1[t]), int(routing.start_N1[t + 1]))
        got = sorted(zip(routing.cell_P[pairs].tolist(), routing.gate_P[pairs].tolist(), strict=True))
        wanted = sorted(
            (r * n + c, (row_NHI[t, h, r] + column_NHJ[t, h, c]).exp().item())
            for h in range(H)
            for r in range(n)
            for c in range(n)
            if row_NHI[t, h, r] + column_NHJ[t, h, c] > router.threshold_H[h]
        )
        assert [cell for cell, _ in got] == [cell for cell, _ in wanted]
        assert [gate for _, gate in got] == pytest.approx([gate for _, gate in wanted], rel=1e-12)
    assert 0 < len(routing.cell_P) < N * H * n * n


def test_gates_keep_the_partition_function_of_all_pairs():
    """With no threshold a head's gates sum to 1; with one, to less."""
    router, _, x_ND = layer(JUMP)
    whole = router(x_ND, TOKENS)
    sums_N = torch.segment_reduce(whole.gate_P.detach(), "sum", lengths=whole.start_N1.diff())
    torch.testing.assert_close(sums_N, torch.full((N,), float(H), dtype=torch.float64))
    router.threshold_H.fill_(-2.0)
    cut = router(x_ND, TOKENS)
    assert cut.gate_P.sum() < whole.gate_P.sum()
    assert set(cut.gate_P.tolist()) < set(whole.gate_P.tolist())


def many_inputs(count=400):
    return torch.randn(count, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def test_the_first_training_batch_sets_thresholds_at_the_target():
    router, _, _ = layer(JUMP)
    assert torch.isneginf(router.threshold_H).all()
    x_ND = many_inputs()
    routing = router.train()(x_ND, TOKENS)
    assert torch.isfinite(router.threshold_H).all()
    row_NHI, column_NHJ = routing.log_gate1_NHI, routing.log_gate2_NHJ
    score_NHIJ = row_NHI[..., :, None] + column_NHJ[..., None, :]
    fired_H = (score_NHIJ > router.threshold_H[:, None, None]).sum((0, 2, 3)) / len(x_ND)
    assert len(routing.cell_P) / len(x_ND) == pytest.approx(H * K, rel=0.01)
    assert fired_H.tolist() == pytest.approx([K] * H, rel=0.05)


def test_in_training_a_threshold_rises_where_too_much_fires_and_falls_where_too_little_does():
    router, _, _ = layer(JUMP)
    router.train()
    router.threshold_H.copy_(torch.tensor([-9.0, 0.0, -9.0]))  # all that passes; nothing, as gates are below 1; all
    before = router.threshold_H.clone()
    router(many_inputs(), TOKENS)
    moved_H = router.threshold_H - before
    assert moved_H[0] > 0
    assert moved_H[1].item() == pytest.approx(-THRESHOLD_GAIN * K)
    assert moved_H[2] > 0


def test_in_evaluation_thresholds_and_statistics_stay():
    router, _, x_ND = layer(JUMP)
    before = {name: tensor.clone() for name, tensor in router.state_dict().items()}
    router(x_ND, TOKENS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in router.state_dict().items())


def test_a_threshold_lets_its_target_of_pairs_pass():
    generator = torch.Generator().manual_seed(8)
    row_NHI, column_NHJ = torch.randn(2, 50, H, n, generator=generator).unbind(0)
    row_NHI[row_NHI < -0.5] = -torch.inf
    threshold_H = threshold_for(row_NHI, column_NHJ, 4)
    fired = (row_NHI[..., :, None] + column_NHJ[..., None, :]) > threshold_H[:, None, None]
    assert fired.sum((0, 2, 3)).tolist() == [200] * H


def test_heads_with_shared_keys_and_equal_queries_have_equal_scores():
    for keys in ("shared", "per-head"):
        router, _, x_ND = layer(SOFTMAX.model_copy(update={"sub_keys": keys, "query_norm": False}))
        with torch.no_grad():
            weight = router.query.weight.view(2, H, Q, D)
            weight[:, 1] = weight[:, 0]
        row_NHI, column_NHJ = router.scores(x_ND)
        equal = torch.equal(row_NHI[:, 0], row_NHI[:, 1]) and torch.equal(column_NHJ[:, 0], column_NHJ[:, 1])
        assert equal == (keys == "shared")
        assert not torch.equal(row_NHI[:, 0], row_NHI[:, 2])


def routing_of(cells_of_tokens):
    counts = torch.tensor([len(cells) for cells in cells_of_tokens])
    cell_P = torch.tensor([cell for cells in cells_of_tokens for cell in cells], dtype=torch.int64)
    return PeerRouting(cell_P, starts(counts), torch.linspace(0.1, 1, len(cell_P)), None)


@pytest.mark.parametrize("counts", [[2, 0, 3, 0, 0, 1, 1, 0, 4], [0, 0, 0, 5, 0, 0, 0, 0, 0]], ids=str)
def test_a_cell_reaches_all_its_experts_whatever_their_number(counts):
    spec = PeerSpec(num_keys=3, num_experts=sum(counts), pairs_per_head=2, active_keys=1)
    index = CellIndex(spec)
    index.place(starts(torch.tensor(counts)))
    experts_of_cell = [[e for e, c in enumerate(index.cell_of_experts().tolist()) if c == cell] for cell in range(9)]
    assert [len(experts) for experts in experts_of_cell] == counts
    cells_of_tokens = [[2, 0, 8], [], [1], [3, 3, 2], [4, 7]]
    routing = routing_of(cells_of_tokens)
    expert_P, start_N1, gate_P = index(routing)
    wanted = [
        [(e, gate) for cell, gate in zip(cells, gates, strict=True) for e in experts_of_cell[cell]]
        for cells, gates in zip(
            cells_of_tokens, [p.tolist() for p in routing.gate_P.split([3, 0, 1, 3, 2])], strict=True
        )
    ]
    pairs = list(zip(expert_P.tolist(), gate_P.tolist(), strict=True))
    assert [pairs[a:b] for a, b in zip(start_N1.tolist(), start_N1.tolist()[1:], strict=False)] == wanted


def test_no_pairs_reach_no_experts():
    index = CellIndex(PeerSpec(num_keys=3, num_experts=7, pairs_per_head=2, active_keys=1))
    expert_P, start_N1, gate_P = index(routing_of([[], []]))
    assert (len(expert_P), start_N1.tolist(), len(gate_P)) == (0, [0, 0, 0], 0)


@pytest.mark.parametrize("num_experts", [1, 4, 9, 31])
def test_experts_lie_evenly_over_the_cells(num_experts):
    index = CellIndex(PeerSpec(num_keys=3, num_experts=num_experts, pairs_per_head=2, active_keys=1))
    counts_C = index.stored.row().diff()
    assert counts_C.sum() == num_experts
    assert counts_C.max() - counts_C.min() <= 1
    assert torch.equal(index.cell_of_experts().sort().values, index.cell_of_experts())


def test_pairs_are_what_the_output_is_made_of():
    router, experts, x_ND = layer(SOFTMAX.model_copy(update={"num_experts": 83}))
    routing = router(x_ND, TOKENS)
    pairs, (_, start_N1, _) = experts.pairs(x_ND, routing), experts.index(routing)
    hidden_P = torch.nn.functional.gelu(pairs.pre_PM[:, 0])
    y_ND = torch.stack(
        [
            ((pairs.gate_P * hidden_P)[a:b, None] * experts.v[pairs.expert_P[a:b]]).sum(0)
            for a, b in zip(start_N1.tolist(), start_N1.tolist()[1:], strict=False)
        ]
    )
    assert_close(experts(x_ND, routing), y_ND, 1e-13)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"sub_keys": "identity", "d_key": 5}, "identity keys have d_key = num_keys = 7, not 5"),
        ({"pairs_per_head": 8}, "pairs_per_head=8 is more than num_keys=7"),
        ({"gate": "jumprelu", "active_keys": 7}, "active_keys=7 must be below num_keys=7"),
        ({"accumulator": True, "precision": "int8"}, "only int4 tables have an accumulator; precision is int8"),
        ({"axis_bias": True}, "axis_bias needs the jumprelu gate"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong, sentence):
    with pytest.raises(ValidationError, match=sentence):
        PeerSpec(**(SOFTMAX.model_dump() | wrong))


def test_a_kind_says_the_precision():
    kinds = [SOFTMAX.model_copy(update={"precision": p}).kind for p in ("float", "int8", "int4")]
    assert kinds == ["peer", "peer-int8", "peer-int4"]


@pytest.mark.parametrize("pools", ["shared", "per-head"])
def test_experts_share_a_row_or_a_column_where_they_share_its_sub_keys(pools):
    heads = range(H if pools == "per-head" else 1)
    keys = [(head, row, column) for head in heads for row in range(n) for column in range(2 * n)]  # an expert a cell
    spec = SOFTMAX.model_copy(update={"aspect": 2, "num_experts": len(keys), "pools": pools})
    cell_E2 = kind_of(spec).cells(PeerExperts(spec, D)).tolist()
    for axis, count in enumerate((n, 2 * n)):
        both = {(cell[axis], (key[0], key[1 + axis])) for cell, key in zip(cell_E2, keys, strict=True)}
        assert len(both) == len({number for number, _ in both}) == len({key for _, key in both}) == len(heads) * count
