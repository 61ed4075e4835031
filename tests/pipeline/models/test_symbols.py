"""Symbolic experts against the int4 experts they replace: exact tiers, dropped ones, logic, and tables that lie."""

import pytest
import torch

from kernels.activations import activation
from kernels.symbol_table.tables import context_of
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.monet import MonetSpec
from pipeline.models.peer.gates import threshold_for
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.symbols import SymbolExperts, SymbolRouting, SymbolSpec, activation_code
from pipeline.models.tables.experts import TableExperts
from pipeline.models.transformer import TransformerSpec
from pipeline.symbolic.formulas.functions import BY_CODE, SPLINE_CODE
from pipeline.symbolic.recording import record
from pipeline.symbolic.tiers import Tier
from pipeline.symbolic.writing.controls import ConstantMagnitude, PermutedFiring
from pipeline.transforms.from_monet import keep_experts, peer_from_monet
from pipeline.transforms.precision import to_int4
from pipeline.transforms.pursuit import matching_pursuit
from tests.logic_gates import gate

# N tokens, D model width, E experts, P pairs, B sequences, T tokens a sequence

VOCABULARY, D, KEYS, E = 23, 12, 5, 43
LITERALS, GATES = 4, 3


def tokens(seed, batch=3, length=17):
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def int4():
    """A Monet with the statistics of a few batches, as a pruned int4 PEER with thresholds; routers serve two blocks."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        shape = TransformerSpec(d_model=D, num_layers=3, num_heads=2, num_kv_heads=1, vocab_size=VOCABULARY)
        experts = MonetSpec(num_sub_experts=KEYS, d_expert=3, num_heads=2, active_sub_experts=2, router_group=2)
        monet = LanguageModel(ModelSpec(transformer=shape, experts=experts)).train()
        for seed in range(5):
            monet(tokens(seed, batch=8))
        peer = peer_from_monet(monet.eval(), pairs_per_head=3)
        for block in peer.blocks():
            block.moe.bias.copy_(0.3 * torch.randn(KEYS * KEYS * 3))
            block.moe.axis_bias.row.copy_(torch.randn(KEYS, D))
        trace = peer.trace(tokens(99, batch=8))
        for block, routing in zip(peer.blocks(), trace.routings, strict=True):
            if isinstance(block.router, PeerRouter):
                block.router.threshold_H.copy_(threshold_for(routing.log_gate1_NHI, routing.log_gate2_NHJ, 3))
        kept = [torch.randperm(KEYS * KEYS * 3)[:E].sort().values for _ in peer.blocks()]
        return to_int4(keep_experts(peer, kept), clips=5)


@pytest.fixture
def sample(int4):
    """The middle block, its inputs, what its router says of them, and the tokens themselves."""
    tokens_BT = tokens(40)
    with torch.no_grad():
        trace = int4.trace(tokens_BT)
    experts = int4.blocks()[1].moe
    assert isinstance(experts, TableExperts)
    return experts, trace.expert_inputs[1], SymbolRouting(trace.routings[1], tokens_BT)


def exact(experts: TableExperts) -> SymbolExperts:
    """All experts T0, with room for sparse formulas, literals and a spline."""
    ours = SymbolExperts(
        SymbolSpec(
            peer=experts.spec, vocab_size=VOCABULARY, coordinates=D, places=2,
            num_dense=(E,), num_literals=(LITERALS,), num_gates=(GATES,), num_splines=(1,),
        ),
        D, 0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    state = ours.state_dict()
    for name, tensor in experts.state_dict().items():
        if name.startswith(("index.", "v.", "axis_bias.")):
            state[name] = tensor
    state["code_E"] = torch.full((E,), activation_code(experts.spec.activation), dtype=torch.uint8)
    state["scale_E"], state["intercept_E"] = torch.ones(E), experts.bias.detach()
    state["dense_row_E"] = torch.arange(E, dtype=torch.int32)
    state["dense_u_FD"] = experts.u.rows(torch.arange(E))
    state["member_LV"] = torch.rand(LITERALS, VOCABULARY, generator=generator) < 0.4
    state["literal_offset_L"] = torch.tensor([0, 1, 0, 1], dtype=torch.uint8)
    state["spline_high_W"] = torch.ones(1)
    ours.load_state_dict(state)
    ours.check("experts")
    return ours


@torch.no_grad()
def contribution(experts: TableExperts, x_ND, routing: PeerRouting, expert):
    """(N, D): what one expert of the int4 model adds, pair by pair."""
    expert_P, start_N1, gate_P = experts.index(routing)
    token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
    own_P = expert_P == expert
    pre_P = x_ND[token_P[own_P]] @ experts.u.rows(torch.tensor([expert]))[0] + experts.bias[expert]
    strength_P = gate_P[own_P] * activation(experts.spec.activation).f(pre_P)
    v_D = experts.v.rows(torch.tensor([expert]))[0]
    return torch.zeros_like(x_ND).index_add(0, token_P[own_P], strength_P[:, None] * v_D)


def strongest(experts, x_ND, routing):
    """The experts whose output is longest on the sample, first the longest."""
    lengths = torch.stack([contribution(experts, x_ND, routing, e).norm() for e in range(E)])
    assert int((lengths > 0).sum()) > 10
    return lengths.argsort(descending=True).tolist()


def test_experts_that_are_all_exact_are_the_int4_experts(sample):
    experts, x_ND, routing = sample
    with torch.no_grad():
        torch.testing.assert_close(exact(experts)(x_ND, routing), experts(x_ND, routing.cells), rtol=1e-5, atol=1e-5)


def test_symbols_as_a_whole_are_symbols_in_parts_and_follow_their_tables(cpu_path, int4):
    """By records, where there is the C++ library and its router left the routing packed, else by the tables."""
    tokens_BT = tokens(41)
    with torch.no_grad():
        trace = int4.trace(tokens_BT)
        x_ND, routing = trace.expert_inputs[1], trace.routings[1]
        assert (routing.packed is None) == (cpu_path == "stock")
        tensors = PeerRouting(routing.cell_P, routing.start_N1, routing.gate_P, routing.axes)
        ours = exact(int4.blocks()[1].moe)
        ours.member_LV.copy_(torch.rand(LITERALS, VOCABULARY, generator=torch.Generator().manual_seed(2)) < 0.3)
        ours.gate_G.copy_(torch.tensor([1, 7, 6]))
        ours.wire_b_G.fill_(1)
        ours.offset_E.fill_(0.2)

        def change(name, expert, value):
            getattr(ours, name)[expert] = value

        def bias():
            ours.axis_bias.row.data = ours.axis_bias.row.data + 1

        before = None
        for changed in (
            lambda: None, lambda: change("tier_E", slice(7, 20), Tier.T4), lambda: change("tier_E", 3, Tier.T3),
            lambda: change("scale_E", slice(None), 0.3), lambda: change("rule_E", 3, 2), bias,
            lambda: ours.v.weight_EB.add_(1), lambda: ours.member_LV.logical_not_(),
        ):  # fmt: skip
            changed()
            whole, parts = (ours(x_ND, SymbolRouting(cells, tokens_BT)) for cells in (routing, tensors))
            torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
            assert before is None or not torch.equal(whole, before)
            before = whole
        if cpu_path != "stock":
            for name, other in (("coefficient_EK", torch.float64), ("index_EK", torch.int64)):
                kept = getattr(ours, name)
                setattr(ours, name, kept.to(other))
                with pytest.raises(ValueError, match=f"symbol_table got {name} with"):
                    ours(x_ND, SymbolRouting(routing, tokens_BT))
                setattr(ours, name, kept)
        ours.code_E[5] = 200
        if cpu_path != "stock":
            with pytest.raises(ValueError, match="code_E holds 200 at 5"):
                ours(x_ND, SymbolRouting(routing, tokens_BT))


def test_a_dropped_expert_is_missing_by_its_own_contribution_and_nothing_else(sample):
    experts, x_ND, routing = sample
    ours, dropped = exact(experts), strongest(experts, x_ND, routing.cells)[1]
    ours.tier_E[dropped] = Tier.T4
    with torch.no_grad():
        missing_ND = experts(x_ND, routing.cells) - ours(x_ND, routing)
    assert missing_ND.norm() > 0.01
    torch.testing.assert_close(missing_ND, contribution(experts, x_ND, routing.cells, dropped), rtol=1e-4, atol=1e-5)


def test_formulas_of_all_coordinates_are_the_exact_experts(sample):
    experts, x_ND, routing = sample
    ours = exact(experts)
    ours.tier_E[:] = Tier.T1
    support = matching_pursuit(
        torch.randn(E, 400, D, generator=torch.Generator().manual_seed(1)), torch.ones(E, 400),
        experts.u.rows(torch.arange(E)), experts.bias.detach(), (D,),
    )  # fmt: skip
    ours.index_EK.copy_(support.index_EK)
    # The pursuit names the coordinates; its coefficients carry a ridge of 1e-4, so u's own are put beside them.
    u_EK = experts.u.rows(torch.arange(E)).gather(1, support.index_EK)
    torch.testing.assert_close(support.coefficients[D][:, :-1], u_EK, rtol=1e-2, atol=1e-3)
    ours.coefficient_EK.copy_(u_EK)
    with torch.no_grad():
        torch.testing.assert_close(ours(x_ND, routing), exact(experts)(x_ND, routing), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [1, 2, 6, 8, 13])
def test_a_logic_expert_fires_exactly_where_its_statement_is_true(sample, kind):
    experts, x_ND, routing = sample
    ours, expert = exact(experts), strongest(experts, x_ND, routing.cells)[0]
    ours.tier_E[:] = Tier.T4
    ours.tier_E[expert] = Tier.T3
    ours.code_E[expert], ours.scale_E[expert], ours.intercept_E[expert] = 0, -1.75, 0.0
    ours.rule_E[expert], ours.gate_G[1], ours.wire_a_G[1], ours.wire_b_G[1] = 1, kind, 1, 2
    a_N, b_N = ours.literals.values(context_of(routing.tokens_BT, 2))[[1, 2]]
    true_N = gate(kind, a_N, b_N)
    assert 0 < int(true_N.sum()) < len(true_N)
    v_D = experts.v.rows(torch.tensor([expert]))[0]
    with torch.no_grad():
        own_ND = ours(x_ND, routing) - experts.axis_bias(routing.cells)
    torch.testing.assert_close(own_ND, -1.75 * true_N.float()[:, None] * v_D, rtol=1e-5, atol=1e-5)


def test_logic_with_a_formula_adds_the_formula_where_it_is_true_whatever_the_router_says(sample):
    experts, x_ND, routing = sample
    ours = exact(experts)
    ours.tier_E[:] = Tier.T4
    ours.tier_E[7], ours.gate_G[0], ours.wire_a_G[0], ours.wire_b_G[0] = Tier.T2, 7, 0, 3
    ours.code_E[7], ours.scale_E[7], ours.offset_E[7], ours.intercept_E[7] = 8, 2.0, 0.5, -0.25
    ours.index_EK[7, :2], ours.coefficient_EK[7, :2] = torch.tensor([4, 9]).short(), torch.tensor([1.5, -1.0])
    a_N, b_N = ours.literals.values(context_of(routing.tokens_BT, 2))[[0, 3]]
    strength_N = (2 * torch.tanh(1.5 * x_ND[:, 4] - x_ND[:, 9] - 0.25) + 0.5) * (a_N | b_N)
    with torch.no_grad():
        own_ND = ours(x_ND, routing) - experts.axis_bias(routing.cells)
    v_D = experts.v.rows(torch.tensor([7]))[0]
    torch.testing.assert_close(own_ND, strength_N[:, None] * v_D, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("table", "value", "tier"),
    [
        ("tier_E", 5, None),
        ("gate_G", 16, Tier.T3),
        ("code_E", len(BY_CODE), None),
        ("index_EK", D, Tier.T1),
        ("index_EK", -1, Tier.T1),
        ("rule_E", GATES, Tier.T3),
        ("wire_a_G", LITERALS, Tier.T3),
        ("wire_b_G", -1, Tier.T2),
        ("literal_offset_L", 2, None),
        ("dense_row_E", E, None),
        ("spline_row_E", 1, Tier.T1),
        ("spline_low_W", 2.0, None),
        ("coefficient_EK", float("nan"), Tier.T1),
        ("scale_E", float("inf"), None),
        ("spline_coefficient_WK", float("-inf"), None),
    ],
)
def test_a_table_that_points_outside_itself_or_is_not_finite_is_named(sample, table, value, tier):
    ours = exact(sample[0])
    if tier is not None:
        ours.tier_E[0] = tier
    getattr(ours, table).view(-1)[0] = value
    with pytest.raises(ValueError, match=table):
        ours.check("experts")


@pytest.mark.parametrize(
    ("sizes", "tier", "code", "table"),
    [
        ({"num_gates": (0,)}, Tier.T3, 0, "rule_E"),
        ({"num_dense": (0,)}, Tier.T0, 0, "dense_row_E"),
        ({"num_splines": (0,)}, Tier.T1, SPLINE_CODE, "spline_row_E"),
    ],
)
def test_an_expert_that_points_into_an_empty_table_is_refused(sample, sizes, tier, code, table):
    given = {"num_dense": (1,), "num_literals": (1,), "num_gates": (1,), "num_splines": (1,), **sizes}
    ours = SymbolExperts(SymbolSpec(peer=sample[0].spec, vocab_size=VOCABULARY, places=2, **given), D, 0)
    ours.spline_high_W[:] = 1
    ours.tier_E[:] = Tier.T4
    ours.check("experts")
    ours.tier_E[3], ours.code_E[3] = tier, code
    with pytest.raises(ValueError, match=table):
        ours.check("experts")


@pytest.mark.parametrize(("at", "value"), [(0, 1), (-1, E + 1), (-1, E - 1), (4, E + 9)])
def test_cells_that_do_not_hold_all_experts_in_order_are_refused(sample, at, value):
    ours = exact(sample[0])
    start_C1 = ours.index.stored.row()
    start_C1[at] = value
    ours.index.place(start_C1)
    with pytest.raises(
        ValueError,
        match=r"'experts\.index\.offset_C1' holds .* starts of cells that rise from 0 to 43",
    ):
        ours.check("experts")


def test_records_hold_every_firing_of_the_model_with_its_gates_added_up(int4):
    batches = [tokens(1), tokens(2)]
    records = record(int4, batches, places=3, what="record")
    with torch.no_grad():
        traces = [int4.trace(tokens_BT) for tokens_BT in batches]
    per_batch = batches[0].numel()
    for layer, (block, ours) in enumerate(zip(int4.blocks(), records, strict=True)):
        fired = ours.events
        wanted: dict[tuple[int, int], float] = {}
        for number, trace in enumerate(traces):
            expert_P, start_N1, gate_P = block.moe.index(trace.routings[layer])
            for token in range(per_batch):
                for pair in range(int(start_N1[token]), int(start_N1[token + 1])):
                    key = (int(expert_P[pair]), token + number * per_batch)
                    wanted[key] = wanted.get(key, 0.0) + float(gate_P[pair])
        pairs = list(zip(fired.expert_P.tolist(), fired.token_P.tolist(), strict=True))
        assert pairs == sorted(wanted)
        torch.testing.assert_close(ours.gate_P, torch.tensor([wanted[pair] for pair in pairs]))
        assert int(fired.count_E.sum()) == len(pairs)
        assert torch.equal(ours.x_ND, torch.cat([trace.expert_inputs[layer] for trace in traces]))
        u_PD = block.moe.u.rows(fired.expert_P)
        pre_P = (u_PD * ours.x_ND[fired.token_P]).sum(1) + block.moe.bias.detach()[fired.expert_P]
        torch.testing.assert_close(ours.pre_P, pre_P, rtol=1e-5, atol=1e-5)
        assert torch.equal(fired.context_ON, torch.cat([context_of(tokens_BT, 3) for tokens_BT in batches], dim=1))


def test_permuted_firing_moves_the_firings_and_keeps_their_number(sample):
    experts, x_ND, routing = sample
    seen = []
    hook = experts.index.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    with torch.no_grad():
        experts(x_ND, routing.cells)
        PermutedFiring(experts, torch.Generator().manual_seed(0))(x_ND, routing.cells)
    hook.remove()
    (_, (expert_P, start_N1, gate_P)), (moved, (moved_P, moved_N1, moved_gate_P)) = seen
    assert torch.equal(torch.bincount(expert_P, minlength=E), torch.bincount(moved_P, minlength=E))
    assert sorted(start_N1.diff().tolist()) == sorted(moved_N1.diff().tolist())
    assert torch.equal(gate_P.sort().values, moved_gate_P.sort().values)
    assert not torch.equal(start_N1, moved_N1)
    order_N = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(0))
    starts_N1 = routing.cells.start_N1
    for token, source in enumerate(order_N.tolist()):
        theirs = slice(int(starts_N1[source]), int(starts_N1[source + 1]))
        here = slice(int(moved.start_N1[token]), int(moved.start_N1[token + 1]))
        assert torch.equal(moved.cell_P[here], routing.cells.cell_P[theirs])


def test_a_constant_magnitude_is_added_once_wherever_an_expert_fires(int4, sample):
    experts, x_ND, routing = sample
    mean_E = torch.randn(E, generator=torch.Generator().manual_seed(2))
    expert_P, start_N1, _ = experts.index(routing.cells)
    wanted_ND = experts.axis_bias(routing.cells).detach().clone()
    for token in range(len(x_ND)):
        for expert in set(expert_P[int(start_N1[token]) : int(start_N1[token + 1])].tolist()):
            wanted_ND[token] += mean_E[expert] * experts.v.rows(torch.tensor([expert]))[0]
    with torch.no_grad():
        torch.testing.assert_close(ConstantMagnitude(experts, mean_E)(x_ND, routing.cells), wanted_ND)
