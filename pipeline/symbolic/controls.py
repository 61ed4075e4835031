"""What symbols must beat: the same firing with a constant magnitude, and the same magnitudes fired at random."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kernels.activations import activation
from kernels.expert_sum.bags import bag_sum
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer import starts
from pipeline.models.peer_routing import PeerRouting
from pipeline.models.quantized import QuantizedExperts
from pipeline.symbolic.recording import LayerRecord


class ConstantMagnitude(nn.Module):
    """Experts whose gate * activation is one constant each, wherever they fire; routing and v as they were."""

    def __init__(self, experts: QuantizedExperts, constant_E: Tensor) -> None:
        super().__init__()
        self.experts, self.constant_E = experts, constant_E

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        expert_P, start_N1, _ = self.experts.index(routing)
        token_P = torch.repeat_interleave(torch.arange(len(x_ND)), start_N1.diff())
        # Once a token, also where several heads reach the expert: the constant is that of their gates' sum.
        key_P = torch.unique(token_P * len(self.constant_E) + expert_P)
        token_P, expert_P = key_P // len(self.constant_E), key_P % len(self.constant_E)
        row_R, local_P = torch.unique(expert_P, return_inverse=True)
        start_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
        y_ND = bag_sum(self.experts.v.rows(row_R), local_P, start_N1, self.constant_E[expert_P])  # type: ignore[operator]
        return y_ND if self.experts.axis_bias is None else y_ND + self.experts.axis_bias(routing)


class PermutedFiring(nn.Module):
    """Experts that fire, with their gates, on the tokens of a random permutation; magnitudes as the input says."""

    def __init__(self, experts: QuantizedExperts, generator: torch.Generator) -> None:
        super().__init__()
        self.experts, self.generator = experts, generator

    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        order_N = torch.randperm(len(x_ND), generator=self.generator)
        count_N = routing.start_N1.diff()[order_N]
        start_N1 = torch.cat([count_N.new_zeros(1), count_N.cumsum(0)])
        first_P = torch.repeat_interleave(routing.start_N1[:-1][order_N] - start_N1[:-1], count_N)
        pair_P = first_P + torch.arange(len(first_P))
        row_NHI, column_NHJ = routing.log_gate1_NHI, routing.log_gate2_NHJ
        axes = None if row_NHI is None or column_NHJ is None else (row_NHI[order_N], column_NHJ[order_N])
        return self.experts(x_ND, PeerRouting(routing.cell_P[pair_P], start_N1, routing.gate_P[pair_P], axes))


def mean_magnitudes(model: LanguageModel, records: Sequence[LayerRecord]) -> list[Tensor]:
    """(E) a block: the mean of gate * activation over an expert's firings."""
    means = []
    for block, record in zip(model.blocks(), records, strict=True):
        assert isinstance(block.moe, QuantizedExperts)
        magnitude_P = record.gate_P * activation(block.moe.spec.activation).f(record.pre_P)
        count_E = record.events.count_E
        sums_E = torch.zeros(len(count_E)).index_add(0, record.events.expert_P, magnitude_P)
        means.append(sums_E / count_E.clamp(min=1))
    return means


@contextmanager
def replaced(model: LanguageModel, experts: Sequence[nn.Module]) -> Iterator[LanguageModel]:
    """Within it, the model's blocks use these expert layers."""
    before = [block.moe for block in model.blocks()]
    try:
        for block, moe in zip(model.blocks(), experts, strict=True):
            block.moe = moe
        yield model
    finally:
        for block, moe in zip(model.blocks(), before, strict=True):
            block.moe = moe
