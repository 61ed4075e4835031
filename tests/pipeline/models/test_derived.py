"""Routers and experts that C++ runs as a whole: the same as their parts, and made ready again when a tensor changes."""

import copy

import pytest
import torch
from torch import nn

from pipeline.models.derived import Derived
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.gates import threshold_for
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.rounding import quantize_int4, quantize_int8
from pipeline.symbolic.tiers import Tier
from tests.tiny import EVERY_KIND, JUMP, tiny_model, tiny_tokens
from tests.tiny_symbols import symbols_model
from tests.tolerances import assert_close

# N tokens, D model width, E experts

D, E, KEYS, HEADS = 24, 150, 7, 2
TOKENS = torch.zeros(1, 0, dtype=torch.int64)
CHANGES = {
    "float": {},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "int8": {"precision": "int8"},
    "int4": {"precision": "int4", "accumulator": True},
    "int4 in groups": {"precision": "int4", "scale_groups": 3},
}
SPARSE = JUMP.model_copy(
    update={"sub_keys": "identity", "d_key": 5, "query_norm": False, "score_features": 9, "score_terms": 3}
)
LIMIT = 2e-4
"""AVX-512 rounds tokens to 15 bits where it multiplies int8 and int4."""


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def layers(changes, tokens=40):
    """A jump router with statistics of its inputs, experts over it, and the inputs."""
    spec = PeerSpec(
        num_keys=KEYS, d_key=KEYS, num_experts=E, num_heads=HEADS, active_keys=3, gate="jumprelu", sub_keys="identity",
        query_norm=False, axis_bias=True, score_features=9, score_terms=3, **changes,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        router = PeerRouter(spec, D)
        experts = PeerExperts(spec, D) if spec.precision == "float" else TableExperts(spec, D)
    many_ND = normal(300, D, seed=2)
    router.query.weight.mul_(normal(*router.query.weight.shape, seed=3).argsort(1) < 3)
    for _ in range(40):
        router.train()(many_ND, TOKENS)
    router.threshold_H.copy_(threshold_for(*router.eval().log_gates(many_ND), 4.0) + 1e-4)
    for i, parameter in enumerate(experts.parameters()):
        parameter.copy_(0.3 * normal(*parameter.shape, seed=10 + i))
    for i, name in enumerate(("u", "v") if spec.precision != "float" else ()):
        table, rows_ED = getattr(experts, name), normal(E, D, seed=20 + i) / 4
        match spec.precision:
            case "int8":
                table.value_ED[:], table.scale_E[:] = quantize_int8(rows_ED)
            case "int4":
                table.set(*quantize_int4(rows_ED, clips=3, groups=spec.scale_groups))
            case _:
                table.value_ED.copy_(rows_ED)
    return router, experts.eval(), many_ND[:tokens].clone()


def whole(router, experts, x_ND):
    with torch.no_grad():
        return experts(x_ND, router(x_ND, TOKENS))


def in_parts(router, experts, x_ND):
    """By the router that learns, whose routing is tensors, so that cells, experts and biases are ops of their own."""
    with torch.enable_grad():
        routing = router(x_ND, TOKENS)
    assert routing.packed is None
    with torch.no_grad():
        return experts(x_ND, routing)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 40])
def test_a_layer_as_a_whole_is_the_layer_in_parts(cpu_path, changes, tokens):
    made = layers(changes, tokens)
    assert_close(whole(*made), in_parts(*made), LIMIT)


def test_what_a_router_leaves_packed_is_what_the_parts_make(cpu_path):
    router, _, x_ND = layers({})
    trained = router(x_ND, TOKENS)
    with torch.no_grad():
        routing = router(x_ND, TOKENS)
    assert (routing.packed is None) == (cpu_path == "stock")
    assert torch.equal(routing.cell_P, trained.cell_P)
    assert torch.equal(routing.start_N1, trained.start_N1)
    assert_close(routing.gate_P, trained.gate_P, 1e-5)
    assert routing.axes is routing.axes


def scaled(router, experts):
    experts.u.scale_E.mul_(2)


def other_bias(router, experts):
    experts.axis_bias.row.data = experts.axis_bias.row.data + 1


def other_table(router, experts):
    experts.v = copy.deepcopy(experts.v)
    experts.v.value_ED.neg_()


def loaded(router, experts):
    state = {name: tensor.clone() for name, tensor in experts.state_dict().items()}
    state["bias"] += 1
    experts.load_state_dict(state)


def replaced_buffer(router, experts):
    router.threshold_H = router.threshold_H - 1


def other_statistics(router, experts):
    router.norm1.running_mean.add_(0.3)


def other_rows(router, experts):
    router.query.weight.mul_(2)


def other_features(router, experts):
    router.features.weight = nn.Parameter(router.features.weight.flip(0).clone())


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [scaled, other_bias, other_table, loaded, replaced_buffer, other_statistics, other_rows, other_features],
)
def test_layers_follow_whatever_is_done_to_their_tensors(cpu_path, change):
    router, experts, x_ND = layers(CHANGES["int8"])
    before = whole(router, experts, x_ND)
    copied = copy.deepcopy((router, experts))
    change(router, experts)
    after = whole(router, experts, x_ND)
    assert not torch.equal(after, before)
    assert_close(after, in_parts(router, experts, x_ND), LIMIT)
    assert torch.equal(whole(*copied, x_ND), before)


def test_nothing_is_made_ready_twice_for_nothing():
    router, experts, _ = layers(CHANGES["int4"])
    kept: Derived[object] = Derived()

    def of(beside):
        return kept.of(experts, beside, lambda: (object(), [experts.u.weight_EB]))

    first = of(None)
    assert of(None) is first
    assert of(router) is not first
    first = of(router)
    with torch.no_grad():
        experts.v.weight_EB[3, 2] += 1  # is read where it lies
    assert of(router) is first
    experts.u.weight_EB.data[3, 2] += 1
    assert of(router) is not first
    assert copy.deepcopy(kept)._state is None


def by_data(tensor, values):
    tensor.data.copy_(values)


def by_numpy(tensor, values):
    """As code of another language does: torch counts no write."""
    tensor.detach().view(torch.uint8).numpy()[...] = values.view(torch.uint8).numpy()


def by_storage(tensor, values):
    tensor.data = values.clone()


def by_strides(tensor, values):
    """The same address, other numbers in its rows: the storage is turned round with the tensor."""
    if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
        tensor.data.copy_(values.t())
        tensor.data = tensor.data.t()
    else:
        tensor.data.copy_(values)


def other_values(name, tensor):
    """Numbers that a tensor of this name may hold, other than those it holds."""
    if name.endswith("offset_C1"):
        moved = tensor.clone()
        cell = 1 + int((tensor.diff()[1:] > 0).nonzero()[0])
        moved[cell] += 1
        return moved
    if name.endswith("block_start_K"):
        return tensor  # of one block, which begins with expert 0
    if name.endswith("tier_E"):
        return torch.where(torch.arange(len(tensor)) % 5 == 0, int(Tier.T4), tensor).to(tensor.dtype)
    if name.endswith("weight_EB"):
        return tensor.roll(1, 0)
    if tensor.is_floating_point():
        return tensor * 1.5 + 0.01
    return tensor.roll(1, 0)


CHECKED = ("index_EK", "code_E", "rule_E", "_row_E", "gate_G", "wire_a_G", "wire_b_G", "literal_offset_L")
"""Tables of symbols that refer to each other, so that most other numbers are refused."""


@torch.no_grad()
@pytest.mark.parametrize("cpu_path", ["stock", "portable"], indirect=True)
@pytest.mark.parametrize("write", [by_data, by_numpy, by_storage, by_strides])
@pytest.mark.parametrize("kind", ["peer-softmax", "peer-jumprelu", "sparse", "int8", "int4", "symbols"])
def test_no_write_to_any_tensor_of_a_model_is_missed_however_it_is_made(cpu_path, kind, write):
    """Every tensor in turn; a deep copy, which keeps nothing that was made ready, is the oracle."""
    model = symbols_model() if kind == "symbols" else tiny_model(SPARSE if kind == "sparse" else EVERY_KIND[kind])
    tokens_BT = tiny_tokens(batch=2, length=9)
    moved = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(CHECKED) or name.endswith("num_batches_tracked"):
            continue
        before = model(tokens_BT)
        write(tensor, other_values(name, tensor))
        after = model(tokens_BT)
        assert torch.equal(after, copy.deepcopy(model)(tokens_BT)), name
        moved += [name] * (not torch.equal(after, before))
    assert {"moe.v", "router"} <= {part for name in moved for part in ("moe.v", "router") if part in name}


def steps_of(optimizer_of, model, tokens_BT):
    optimizer = optimizer_of([p for p in model.parameters() if p.requires_grad])
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens_BT).logsumexp(-1).sum().backward()
        optimizer.step()


OPTIMIZERS = {
    "fused AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, fused=True),
    "foreach Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, foreach=True),
    "fused SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, fused=True),
}


@pytest.mark.parametrize("cpu_path", ["stock", "portable"], indirect=True)
@pytest.mark.parametrize("optimizer_of", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("kind", ["peer-jumprelu", "int8", "int4"])
def test_a_model_that_was_measured_and_then_trained_is_measured_as_it_is(cpu_path, kind, optimizer_of):
    model, tokens_BT = tiny_model(EVERY_KIND[kind]), tiny_tokens()
    for _ in range(2):
        with torch.no_grad():
            before = model(tokens_BT)
        steps_of(optimizer_of, model, tokens_BT)
        with torch.no_grad():
            after = model(tokens_BT)
            assert torch.equal(after, copy.deepcopy(model)(tokens_BT))
        assert (after - before).abs().max() > 0.01


def test_the_optimizer_of_the_training_loop_still_counts_no_writes():
    """Why no counter is trusted. Should torch count them one day, the tests above still hold."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.sum().backward()
    version = parameter._version
    optimizer.step()
    assert not torch.equal(parameter, torch.ones(3))
    assert parameter._version == version


def _write_elsewhere(tensor):
    tensor.mul_(2)


@torch.no_grad()
@pytest.mark.parametrize("cpu_path", ["stock", "portable"], indirect=True)
def test_another_process_that_trains_in_shared_memory_is_seen(cpu_path):
    router, experts, x_ND = layers(CHANGES["float"])
    for module in (router, experts):
        module.share_memory()
    before = whole(router, experts, x_ND)
    for tensor in (router.query.weight, experts.axis_bias.row):
        worker = torch.multiprocessing.get_context("spawn").Process(target=_write_elsewhere, args=(tensor.data,))
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        after = whole(router, experts, x_ND)
        assert not torch.equal(after, before)
        assert torch.equal(after, whole(*copy.deepcopy((router, experts)), x_ND))
        before = after


def test_models_of_inference_mode_run_too(cpu_path):
    router, experts, x_ND = layers(CHANGES["int8"])
    wanted = whole(router, experts, x_ND)
    with torch.inference_mode():
        made = layers(CHANGES["int8"])
        assert torch.equal(whole(*made), wanted)
        assert torch.equal(whole(router, experts, x_ND), wanted)
        # Tensors of inference mode count no writes: none leaves an old layer in use.
        for one in (made[1], experts):
            one.u.scale_E.mul_(2)
        after = whole(*made)
        assert not torch.equal(after, wanted)
        assert torch.equal(whole(router, experts, x_ND), after)


def test_experts_on_another_device_than_the_states_are_refused(cpu_path):
    if cpu_path == "stock":
        pytest.skip("the parts say so themselves")
    router, experts, x_ND = layers(CHANGES["int8"])
    with pytest.raises(ValueError, match=r"fired_sum got a tensor of shape .* on meta"):
        whole(router, experts.to("meta"), x_ND)


def test_double_precision_and_states_with_gaps_go_their_own_way(cpu_path):
    router, experts, x_ND = layers({})
    wanted = whole(router, experts, x_ND)
    spaced_ND = torch.stack([x_ND, x_ND], dim=2)[:, :, 0]
    assert not spaced_ND.is_contiguous()
    assert_close(whole(router, experts, spaced_ND), wanted)
    double = whole(router.double(), experts.double(), x_ND.double())
    assert double.dtype == torch.float64
    assert_close(double.float(), wanted)
