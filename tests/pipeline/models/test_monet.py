"""Monet is the sum over all composed experts, its router is the release's, and its checkpoints open."""

from statistics import NormalDist

import pytest
import torch
from pydantic import ValidationError

from pipeline.models.monet import MoHDE, MonetRouter, MonetRouting, MonetSpec, MoVDE
from tests.tiny import HORIZONTAL, SHAPE, VERTICAL, tiny_model
from tests.tolerances import assert_close

# N tokens, D model width, H router heads, n sub-experts an axis, M hidden units of an expert
N, D, H, n, M = 7, SHAPE.d_model, HORIZONTAL.num_heads, HORIZONTAL.num_sub_experts, HORIZONTAL.d_expert


def layer_of(kind, spec):
    """The layer in float64 with every bias nonzero, and inputs with a routing whose heads' gates sum to 1."""
    generator = torch.Generator().manual_seed(0)
    layer = kind(spec, D).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=generator) * 0.4)
    x_ND = torch.randn(N, D, dtype=torch.float64, generator=generator)
    gates = [torch.rand(N, H, n, dtype=torch.float64, generator=generator) for _ in range(2)]
    gates = [g.masked_fill(g < 0.4, 0) + 1e-3 for g in gates]
    return layer, x_ND, MonetRouting(*(g / g.sum(-1, keepdim=True) for g in gates))


def relu2(x):
    return torch.relu(x) ** 2


def test_horizontal_output_is_the_sum_over_every_composed_expert():
    layer, x_ND, routing = layer_of(MoHDE, HORIZONTAL)
    wanted = torch.zeros(N, D, dtype=torch.float64)
    for i in range(n):
        hidden = slice(i * M, (i + 1) * M)
        for j in range(n):
            gate_N = (routing.gate1_NHI[:, :, i] * routing.gate2_NHJ[:, :, j]).sum(1)
            a_NM = relu2(x_ND @ layer.u.weight[hidden].T + layer.u.bias[hidden])  # eq. 6: sigma(U_i x + b1_i)
            expert_ND = a_NM @ layer.v.weight[:, j * M : (j + 1) * M].T + layer.b[j]
            wanted += gate_N[:, None] * expert_ND
    assert_close(layer(x_ND, routing), wanted, 1e-13)


def test_vertical_output_is_the_sum_over_every_composed_expert():
    layer, x_ND, routing = layer_of(MoVDE, VERTICAL)
    wanted = torch.zeros(N, D, dtype=torch.float64)
    half = M // 2
    for i in range(n):
        for j in range(n):
            gate_N = (routing.gate1_NHI[:, :, i] * routing.gate2_NHJ[:, :, j]).sum(1)
            of_i, of_j = slice(i * half, (i + 1) * half), slice(j * half, (j + 1) * half)
            # eq. 13 to 15: [[V11_i V12_i], [V21_j V22_j]] sigma([U1_i; U2_j] x + [b11_i; b21_j]) + [b12_i; b22_j]
            u_MD = torch.cat([layer.u1.weight[of_i], layer.u2.weight[of_j]])
            a_NM = relu2(x_ND @ u_MD.T + torch.cat([layer.u1.bias[of_i], layer.u2.bias[of_j]]))
            top = torch.cat([layer.v11.weight[:, of_i], layer.v12.weight[:, of_i]], dim=1)
            bottom = torch.cat([layer.v21.weight[:, of_j], layer.v22.weight[:, of_j]], dim=1)
            expert_ND = a_NM @ torch.cat([top, bottom]).T + torch.cat([layer.b1[i], layer.b2[j]])
            wanted += gate_N[:, None] * expert_ND
    assert_close(layer(x_ND, routing), wanted, 1e-13)


def router_and_inputs(spec=HORIZONTAL):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        router = MonetRouter(spec, D).double()
        x_ND = torch.randn(29, D, dtype=torch.float64) + 0.2
        for norm in (router.norm1, router.norm2):
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return router, x_ND


def gate_by_hand(z_NHI, mean_H, variance_H):
    """Softmax of the raw logits that are above the batch norm's quantile; the best one at least (Monet eq. 3 to 5)."""
    tau = NormalDist().inv_cdf(1 - HORIZONTAL.active_sub_experts / n)
    gates = torch.zeros_like(z_NHI)
    for t in range(len(z_NHI)):
        for h in range(H):
            normal_I = (z_NHI[t, h] - mean_H[h]) / (variance_H[h] + 1e-5).sqrt()
            passes = normal_I >= min(normal_I.max().item(), tau)
            exp_I = z_NHI[t, h].exp() * passes
            gates[t, h] = exp_I / exp_I.sum()
    return gates


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gates_are_those_computed_by_hand(training):
    router, x_ND = router_and_inputs()
    router.train(training)
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in (router.norm1, router.norm2)]
    routing = router(x_ND, torch.zeros(1, len(x_ND), dtype=torch.int64))
    axes = ((router.w1, router.norm1, routing.gate1_NHI), (router.w2, router.norm2, routing.gate2_NHJ))
    for (linear, norm, gate), (mean_H, variance_H) in zip(axes, kept, strict=True):
        z_NHI = (x_ND @ linear.weight.T).view(len(x_ND), H, n)
        # One mean and variance a head, over tokens and sub-experts.
        own_mean_H, own_variance_H = z_NHI.mean((0, 2)), z_NHI.var((0, 2), correction=0)
        statistics = (own_mean_H, own_variance_H) if training else (mean_H, variance_H)
        assert_close(gate, gate_by_hand(z_NHI, *statistics), 1e-12)
        assert 1 < gate.gt(0).sum(-1).double().mean() < n
        if training:
            torch.testing.assert_close(norm.running_mean, 0.9 * mean_H + 0.1 * own_mean_H)
            torch.testing.assert_close(norm.running_var, 0.9 * variance_H + 0.1 * z_NHI.var((0, 2)))
        else:
            assert torch.equal(norm.running_mean, mean_H)


def test_every_heads_gates_sum_to_one_and_one_passes_however_high_the_bar():
    router, x_ND = router_and_inputs()
    router.eval()
    for norm in (router.norm1, router.norm2):
        norm.running_mean += 1000.0  # nothing reaches the quantile
    routing = router(x_ND, torch.zeros(1, len(x_ND), dtype=torch.int64))
    for gate in (routing.gate1_NHI, routing.gate2_NHJ):
        assert torch.equal(gate.gt(0).sum(-1), torch.ones(len(x_ND), H, dtype=torch.int64))
        assert torch.equal(gate.sum(-1), torch.ones(len(x_ND), H, dtype=torch.float64))


def test_gates_are_float32_and_sum_to_one_where_the_router_reads_less():
    router, x_ND = router_and_inputs()
    router.float()
    for linear in (router.w1, router.w2):
        linear.bfloat16()
    routing = router.eval()(x_ND.bfloat16(), torch.zeros(1, len(x_ND), dtype=torch.int64))
    assert routing.gate1_NHI.dtype == torch.float32
    torch.testing.assert_close(routing.gate1_NHI.sum(-1), torch.ones(len(x_ND), H))


def test_about_the_asked_number_passes_where_logits_are_normal():
    spec = MonetSpec(num_sub_experts=101, d_expert=2, num_heads=3, active_sub_experts=9)
    router, _ = router_and_inputs(spec)
    x_ND = torch.randn(400, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    routing = router.train()(x_ND, torch.zeros(1, 400, dtype=torch.int64))
    assert routing.gate1_NHI.gt(0).sum(-1).double().mean().item() == pytest.approx(9, rel=0.15)


def test_gradients_reach_the_router_through_the_gates():
    model = tiny_model(VERTICAL, dtype=torch.float64)
    model(torch.arange(7)[None]).square().sum().backward()
    for block in model.blocks():
        if block.router is not None:
            assert block.router.w1.weight.grad.abs().max() > 0
            assert block.router.w2.weight.grad.abs().max() > 0


def test_blocks_of_a_group_use_the_lowest_ones_router():
    model = tiny_model(HORIZONTAL)
    assert [block.router is not None for block in model.blocks()] == [True, False, True]
    routings = model.trace(torch.arange(7)[None]).routings
    assert routings[1] is routings[0]
    assert routings[2] is not routings[0]


EXPERT_NAMES = {
    "horizontal": {"u.weight", "u.bias", "v.weight", "b"},
    "vertical": {
        "u1.weight", "u1.bias", "u2.weight", "u2.bias",
        "v11.weight", "v12.weight", "v21.weight", "v22.weight", "b1", "b2",
    },
}  # fmt: skip


@pytest.mark.parametrize("spec", [HORIZONTAL, VERTICAL], ids=lambda spec: spec.decomposition)
def test_parameters_bear_the_names_of_the_public_release(spec):
    wanted = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(3):
        names = {f"self_attn.{p}_proj.weight" for p in "qkvo"}
        names |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
        names |= {f"moe.{name}" for name in EXPERT_NAMES[spec.decomposition]}
        if layer % 2 == 0:
            names |= {"router.w1.weight", "router.w2.weight"}
            names |= {
                f"router.norm{axis}.{statistic}"
                for axis in (1, 2)
                for statistic in ("running_mean", "running_var", "num_batches_tracked")
            }
        wanted |= {f"model.layers.{layer}.{name}" for name in names}
    assert set(tiny_model(spec).state_dict()) == wanted


def test_parameters_have_the_shapes_of_the_public_release():
    moe = tiny_model(VERTICAL).blocks()[0].moe
    shapes = {name: tuple(parameter.shape) for name, parameter in moe.named_parameters()}
    width, half = n * M // 2, D // 2
    assert shapes["u1.weight"] == shapes["u2.weight"] == (width, D)
    assert {shapes[f"v{a}{b}.weight"] for a in (1, 2) for b in (1, 2)} == {(half, width)}
    assert shapes["b1"] == shapes["b2"] == (n, half)


def test_all_sub_experts_cannot_be_active():
    with pytest.raises(ValidationError, match="active_sub_experts=5 must be below num_sub_experts=5"):
        MonetSpec(num_sub_experts=5, active_sub_experts=5)


def test_a_vertical_expert_has_an_even_number_of_hidden_units():
    with pytest.raises(ValidationError, match="d_expert=7 is odd; the vertical decomposition halves it"):
        MonetSpec(decomposition="vertical", d_expert=7)
