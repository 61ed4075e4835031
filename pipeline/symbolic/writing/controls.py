"""What symbols must beat: no experts, the same firing with constant magnitudes, the same magnitudes fired at random.

A control differs from the model in one thing, and keeps what symbols keep: routers and axis biases.
"""

# N tokens, D model width, E experts, P pairs (a token and an expert), R rows of v in use

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.activations import activation
from kernels.expert_sum.bags import bag_sum
from kernels.pairs import starts
from pipeline.measuring.swapped import swapped
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.tables.experts import TableExperts
from pipeline.symbolic.recording import LayerRecord


class BiasesAlone(nn.Module):
    """No expert at all: the axis biases, which symbols keep as they are, and the router that they need."""

    def __init__(self, experts: TableExperts) -> None:
        super().__init__()
        self.axis_bias = experts.axis_bias

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        return torch.zeros_like(x_ND) if self.axis_bias is None else self.axis_bias(routing)


class ConstantMagnitude(nn.Module):
    """Experts whose gate * activation is one constant each, wherever they fire; routing and v as they were."""

    def __init__(self, experts: TableExperts, constant_E: Tensor) -> None:
        super().__init__()
        self.experts, self.constant_E, self.biases = experts, constant_E, BiasesAlone(experts)

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        expert_P, start_N1, _ = self.experts.index(routing)
        token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
        # Once a token, also where several heads reach the expert: the constant is that of their gates' sum.
        key_P = torch.unique(token_P * len(self.constant_E) + expert_P)
        token_P, expert_P = key_P // len(self.constant_E), key_P % len(self.constant_E)
        start_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
        return self.biases(x_ND, routing) + _summed(self.experts, expert_P, start_N1, self.constant_E[expert_P])


class GateConstantMagnitude(nn.Module):
    """Experts whose activation is one constant each; the gate stays, as it does for symbols that fire exactly."""

    def __init__(self, experts: TableExperts, constant_E: Tensor) -> None:
        super().__init__()
        self.experts, self.constant_E, self.biases = experts, constant_E, BiasesAlone(experts)

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        expert_P, start_N1, gate_P = self.experts.index(routing)
        return self.biases(x_ND, routing) + _summed(
            self.experts, expert_P, start_N1, gate_P * self.constant_E[expert_P]
        )


def _summed(experts: TableExperts, expert_P: Tensor, start_N1: Tensor, weight_P: Tensor) -> Tensor:
    """(N, D) the experts' v times these weights, summed for each token."""
    row_R, local_P = torch.unique(expert_P, return_inverse=True)
    return bag_sum(experts.v.rows(row_R), local_P, start_N1, weight_P)


class PermutedFiring(nn.Module):
    """Experts that fire, with their gates, on the tokens of a random permutation; magnitudes as the input says.

    The experts alone: axis biases are those of the token itself.
    """

    def __init__(self, experts: TableExperts, generator: torch.Generator) -> None:
        super().__init__()
        self.experts, self.generator = experts, generator

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        order_N = torch.randperm(len(x_ND), generator=self.generator)
        count_N = routing.start_N1.diff()[order_N]
        start_N1 = torch.cat([count_N.new_zeros(1), count_N.cumsum(0)])
        first_P = torch.repeat_interleave(routing.start_N1[:-1][order_N] - start_N1[:-1], count_N)
        pair_P = first_P + torch.arange(len(first_P))
        return self.experts(x_ND, PeerRouting(routing.cell_P[pair_P], start_N1, routing.gate_P[pair_P], routing.axes))


@dataclass(frozen=True, slots=True)
class Means:
    """(E) over an expert's firings on a sample."""

    gated_E: Tensor
    """Of gate * activation."""
    activation_E: Tensor


def mean_magnitudes(model: LanguageModel, records: Sequence[LayerRecord]) -> list[Means]:
    """Those of every block."""
    means = []
    for experts, record in zip(model.expert_layers_of(TableExperts), records, strict=True):
        activation_P = activation(experts.spec.activation).f(record.pre_P)
        count_E, expert_P = record.events.count_E, record.events.expert_P
        gated_E, activation_E = (
            torch.zeros(len(count_E)).index_add(0, expert_P, value_P) / count_E.clamp(min=1)
            for value_P in (record.gate_P * activation_P, activation_P)
        )
        means.append(Means(gated_E, activation_E))
    return means


@dataclass(frozen=True, kw_only=True, slots=True)
class Ends:
    """Held-out losses of one model between which others are placed, nats a token."""

    whole: float
    without_experts: float
    """Every expert layer gives nothing, its axis biases neither."""
    biases_alone: float
    """Every expert gives nothing; axis biases and routers stay, as they do in symbols."""

    def recovered(self, loss: float) -> float:
        """The share by the definition of `loss_recovered`."""
        return (self.without_experts - loss) / (self.without_experts - self.whole)

    def recovered_over_biases(self, loss: float) -> float:
        """The share of what the experts add to the biases; below 0 is worse than no experts."""
        return (self.biases_alone - loss) / (self.biases_alone - self.whole)


def control_metrics(
    model: LanguageModel,
    records: Sequence[LayerRecord],
    measured: Mapping[str, float],
    loss_of: Callable[[LanguageModel], float],
    generator: torch.Generator,
) -> dict[str, float]:
    """What the symbols and each control recover, by both counts.

    `measured` is of the symbols, against `model`; `loss_of` gives a held-out loss on the same tokens. The parent's loss
    and that without experts are in `measured` already, so that each control costs one forward pass.
    """
    layers = model.expert_layers_of(TableExperts)
    means = mean_magnitudes(model, records)
    arms: dict[str, Sequence[nn.Module]] = {
        "constant_magnitude": [ConstantMagnitude(e, m.gated_E) for e, m in zip(layers, means, strict=True)],
        "gate_constant_magnitude": [
            GateConstantMagnitude(e, m.activation_E) for e, m in zip(layers, means, strict=True)
        ],
        "permuted_firing": [PermutedFiring(e, generator) for e in layers],
    }
    loss = measured["held_out_loss_nats"]
    ends = Ends(
        whole=loss - measured["loss_increase_nats"],
        without_experts=measured["loss_without_experts_nats"],
        biases_alone=_loss_with(model, [BiasesAlone(e) for e in layers], loss_of),
    )
    metrics = {
        "loss_recovered_biases_alone": ends.recovered(ends.biases_alone),
        "loss_recovered_over_biases": ends.recovered_over_biases(loss),
    }
    for name, experts in arms.items():
        control = _loss_with(model, experts, loss_of)
        metrics[f"loss_recovered_{name}"] = ends.recovered(control)
        metrics[f"loss_recovered_{name}_over_biases"] = ends.recovered_over_biases(control)
    return metrics


def _loss_with(model: LanguageModel, experts: Sequence[nn.Module], loss_of: Callable[[LanguageModel], float]) -> float:
    with swapped(model, dict(enumerate(experts))):
        return loss_of(model)
