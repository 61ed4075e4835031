"""PEER's experts as published, their tables parameters; and what all layers of a PEER pool share."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, E experts,
# P pairs (a token and an expert), in order of their tokens, Q scores that pass

import torch
from torch import Tensor, nn

from kernels.activations import activation
from kernels.axis_bias import axis_bias
from kernels.backends import CpuLibrary, cpu_library_for
from kernels.expert_sum import expert_sum
from kernels.expert_sum.bags import row_dots
from kernels.fired_sum import ExpertLayer, ExpertTable
from kernels.pairs import tokens_of_pairs
from pipeline.models.derived import Kept
from pipeline.models.number_types import at_least_float32, outside_autocast
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.routing import PassingKeys, PeerRouting
from pipeline.models.peer.spec import PeerSpec


class AxisBias(nn.Module):
    """Output biases of the sub-keys, weighted by each axis's gates summed over heads (Monet's b terms)."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(spec.num_keys, d_model))
        self.column = nn.Parameter(torch.zeros(spec.num_columns, d_model))

    def forward(self, routing: PeerRouting) -> Tensor:
        axes = routing.axes
        if axes is None:
            raise AssertionError("axis biases need the log gates of a jumprelu router")
        if isinstance(axes, PassingKeys):
            if not torch.is_grad_enabled():
                wide = at_least_float32(self.row), at_least_float32(self.column)
                made_ND = axis_bias(axes.score_Q, axes.gate_Q, axes.start_N1, axes.sizes[0], *wide)
                return made_ND.type_as(self.row)
            axes = axes.log_gates()
        gate1_NI, gate2_NJ = (log_gate_NHX.exp().sum(1) for log_gate_NHX in axes)
        return gate1_NI.type_as(self.row) @ self.row + gate2_NJ.type_as(self.row) @ self.column


def expert_layer(
    library: CpuLibrary,
    spec: PeerSpec,
    index: CellIndex,
    u: ExpertTable,
    bias_E: Tensor,
    v: ExpertTable,
    axis_bias: AxisBias | None,
) -> tuple[ExpertLayer, tuple[Tensor, ...]]:
    """A layer of experts as C++ runs it on what a router in C++ left, and the tensors it has copied."""
    biases = None if axis_bias is None else (axis_bias.row, axis_bias.column)
    sizes = spec.num_heads, spec.num_keys, spec.num_columns
    layer = ExpertLayer(library, index.stored, u, bias_E, v, spec.activation, biases, sizes)
    return layer, layer.copied


class PeerExperts(nn.Module):
    """Float experts: y = sum over a token's experts of gate * act(u . x + b) * v, plus the axis biases."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        self.u = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.v = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.ready: Kept[ExpertLayer] = Kept()

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        if routing.packed is not None and (library := cpu_library_for(x_ND)) is not None:
            u, v = (self.u, None), (self.v, None)
            layer = self.ready.of(
                self, library, lambda: expert_layer(library, self.spec, self.index, u, self.bias, v, self.axis_bias)
            )
            return layer(x_ND.contiguous(), routing.packed)
        expert_P, start_N1, gate_P = self.index(routing)
        y_ND = expert_sum(x_ND, self.u, self.bias, self.v, expert_P, start_N1, gate_P, self.spec.activation)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def activations(self, x_ND: Tensor, routing: PeerRouting) -> tuple[Tensor, Tensor, Tensor]:
        """(P) expert, gate and act(u . x + b) of every pair of a token and an expert, in order of tokens."""
        expert_P, start_N1, gate_P = self.index(routing)
        pre_P = row_dots(x_ND, self.u, expert_P, start_N1, tokens_of_pairs(start_N1)) + self.bias[expert_P]
        return expert_P, gate_P, activation(self.spec.activation).f(pre_P)
