"""Controls of symbols, each against sums over all experts of a dense router, and the shares that they are told by."""

import pytest
import torch

from kernels.activations import activation
from pipeline.corpus.windows import random_windows
from pipeline.models.peer.router import PeerRouter
from pipeline.symbolic.recording import record
from pipeline.symbolic.writing.controls import (
    BiasesAlone,
    ConstantMagnitude,
    Ends,
    GateConstantMagnitude,
    PermutedFiring,
    control_metrics,
    mean_magnitudes,
)
from tests.tiny_int4 import EXPERTS, trained_int4, words_corpus

# N tokens, D model width, E experts


@pytest.fixture(scope="module")
def corpus():
    return words_corpus()


@pytest.fixture(scope="module")
def int4(corpus):
    """With biases of both axes."""
    model, generator = trained_int4(corpus), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for block in model.blocks():
            for bias in block.moe.axis_bias.parameters():
                bias.normal_(generator=generator)
    return model


@pytest.fixture(scope="module")
def layer(corpus, int4):
    """Block 0 on a sample: its experts and, by a router that leaves nothing out, (N, E) gates and (N, D) biases."""
    tokens_BT, _ = random_windows(corpus.train, batch=4, length=32, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        trace, block = int4.trace(tokens_BT), int4.blocks()[0]
        router, experts, x_ND = block.router, block.moe, trace.expert_inputs[0]
        assert isinstance(router, PeerRouter)
        row_NHI, column_NHJ = router.log_gates(x_ND)
        cell_NHC = (row_NHI[:, :, :, None] + column_NHJ[:, :, None, :]).flatten(2)
        gate_NC = (cell_NHC.exp() * (cell_NHC > router.threshold_H[:, None])).sum(1)
        gate_NE = gate_NC[:, experts.index.cell_of_experts()]
        biases_ND = row_NHI.exp().sum(1) @ experts.axis_bias.row + column_NHJ.exp().sum(1) @ experts.axis_bias.column
    return experts, x_ND, trace.routings[0], gate_NE, biases_ND


@torch.no_grad()
def test_each_control_changes_one_thing_and_keeps_the_biases(layer):
    experts, x_ND, routing, gate_NE, biases_ND = layer
    every_E = torch.arange(EXPERTS)
    u_ED, v_ED = experts.u.rows(every_E), experts.v.rows(every_E)
    magnitude_NE = activation(experts.spec.activation).f(x_ND @ u_ED.T + experts.bias)
    constant_E = torch.linspace(-1, 2, EXPERTS)
    order_N = torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(4))
    assert (gate_NE > 0).sum() > len(x_ND)
    for made, wanted_ND in (
        (experts, (gate_NE * magnitude_NE) @ v_ED),
        (BiasesAlone(experts), torch.zeros_like(x_ND)),
        (ConstantMagnitude(experts, constant_E), ((gate_NE > 0) * constant_E) @ v_ED),
        (GateConstantMagnitude(experts, constant_E), (gate_NE * constant_E) @ v_ED),
        (
            PermutedFiring(experts, torch.Generator().manual_seed(4)),
            (gate_NE[order_N] * magnitude_NE) @ v_ED,
        ),
    ):
        torch.testing.assert_close(made(x_ND, routing), wanted_ND + biases_ND, rtol=1e-4, atol=1e-5)


def test_constants_are_means_over_firings(corpus, int4):
    tokens_BT, _ = random_windows(corpus.train, batch=4, length=32, generator=torch.Generator().manual_seed(6))
    sample = record(int4, [tokens_BT], places=2, what="")
    for block, means, of in zip(int4.blocks(), mean_magnitudes(int4, sample), sample, strict=True):
        act = activation(block.moe.spec.activation).f
        for expert in range(EXPERTS):
            mine = of.events.expert_P == expert
            values, gates = act(of.pre_P[mine]), of.gate_P[mine]
            if not len(values):
                assert means.gated_E[expert] == means.activation_E[expert] == 0
                continue
            torch.testing.assert_close(means.activation_E[expert], values.mean())
            torch.testing.assert_close(means.gated_E[expert], (gates * values).mean())


def test_shares_are_between_their_ends_and_harm_is_negative():
    ends = Ends(whole=1.0, without_experts=3.0, biases_alone=2.0)
    assert [ends.recovered(loss) for loss in (1.0, 1.5, 2.0, 2.25, 3.0)] == [1, 0.75, 0.5, 0.375, 0]
    assert [ends.recovered_over_biases(loss) for loss in (1.0, 1.5, 2.0, 2.25)] == [1, 0.5, 0, -0.25]


def test_each_control_is_measured_in_the_place_of_the_experts_which_come_back(corpus, int4):
    """A loss is told by the kind of the layers it was measured with."""
    tokens_BT, _ = random_windows(corpus.train, batch=2, length=32, generator=torch.Generator().manual_seed(6))
    before = [block.moe for block in int4.blocks()]
    losses = {BiasesAlone: 3.0, ConstantMagnitude: 2.5, GateConstantMagnitude: 2.25, PermutedFiring: 3.5}
    measured = {"held_out_loss_nats": 2.125, "loss_increase_nats": 0.125, "loss_without_experts_nats": 4.0}

    def loss_of(model):
        (kind,) = {type(block.moe) for block in model.blocks()}
        return losses[kind]

    sample = record(int4, [tokens_BT], places=2, what="")
    metrics = control_metrics(int4, sample, measured, loss_of, torch.Generator())
    assert metrics == {
        "loss_recovered_biases_alone": 0.5,
        "loss_recovered_over_biases": 0.875,
        "loss_recovered_constant_magnitude": 0.75,
        "loss_recovered_constant_magnitude_over_biases": 0.5,
        "loss_recovered_gate_constant_magnitude": 0.875,
        "loss_recovered_gate_constant_magnitude_over_biases": 0.75,
        "loss_recovered_permuted_firing": 0.25,
        "loss_recovered_permuted_firing_over_biases": -0.5,
    }
    assert [block.moe for block in int4.blocks()] == before
