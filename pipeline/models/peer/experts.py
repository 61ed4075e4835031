"""PEER's experts as published, their tables parameters; and what all layers of a PEER pool share."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, E experts,
# P pairs (a token and an expert), in order of their tokens, Q those chosen of them

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kernels import fired_sum
from kernels.activations import activation
from kernels.backends import CpuLibrary, cpu_library_for
from kernels.expert_sum import expert_sum
from kernels.expert_sum.bags import row_dots
from kernels.pairs import starts, tokens_of_pairs
from pipeline.models.contract import Chosen, ExpertLayer, Pairs, Table
from pipeline.models.derived import Derived
from pipeline.models.number_types import at_least_float32, outside_autocast
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.parameter import ParameterTable


class AxisBias(nn.Module):
    """Output biases of the sub-keys, weighted by each axis's gates summed over heads (Monet's b terms)."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.zeros(spec.num_keys, d_model))
        self.column = nn.Parameter(torch.zeros(spec.num_columns, d_model))

    def forward(self, routing: PeerRouting) -> Tensor:
        if routing.axes is None:
            raise AssertionError("axis biases need a gate whose axes have gates of their own")
        return routing.axes.weighted(self.row, self.column)


def expert_layer(
    library: CpuLibrary,
    spec: PeerSpec,
    index: CellIndex,
    u: fired_sum.ExpertTable,
    bias_E: Tensor,
    v: fired_sum.ExpertTable,
    axis_bias: AxisBias | None,
) -> tuple[fired_sum.ExpertLayer, tuple[Tensor, ...]]:
    """A layer of experts as C++ runs it on what a router in C++ left, and the tensors it has copied."""
    biases = None if axis_bias is None else (axis_bias.row, axis_bias.column)
    sizes = spec.num_heads, spec.num_keys, spec.num_columns
    layer = fired_sum.ExpertLayer(library, index.stored, u, bias_E, v, spec.activation, biases, sizes)
    return layer, layer.copied


class PeerLayer(ExpertLayer):
    """A pool of single neurons in the cells of a key grid: gate * act(u . x + b) * v, and the axis biases.

    How u and v are stored is its subclasses' matter.
    """

    spec: PeerSpec
    index: CellIndex
    bias: nn.Parameter
    axis_bias: AxisBias | None

    @abstractmethod
    def tables(self) -> Mapping[str, Table]:
        """u and v, in this order."""

    @abstractmethod
    def sum_of_pairs(self, x_ND: Tensor, expert_P: Tensor, start_N1: Tensor, gate_P: Tensor) -> Tensor:
        """(N, D) what these pairs add, and nothing of the axis biases. With gradients, but for tables that are no
        parameters."""

    @property
    def num_experts(self) -> int:
        return self.spec.num_experts

    @outside_autocast
    def added(self, x_ND: Tensor, routing: PeerRouting, chosen: Chosen) -> Tensor:
        expert_P, start_N1, gate_P = self.index(routing)
        token_P = tokens_of_pairs(start_N1)
        at_Q = chosen.among(token_P, expert_P, self.num_experts).nonzero()[:, 0]
        token_X, count_X = torch.unique_consecutive(token_P[at_Q], return_counts=True)
        part_XD = self.sum_of_pairs(x_ND[token_X], expert_P[at_Q], starts(count_X), gate_P[at_Q])
        return torch.zeros_like(x_ND).index_copy(0, token_X, part_XD)

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: PeerRouting) -> Pairs:
        expert_P, start_N1, gate_P = self.index(routing)
        token_P = tokens_of_pairs(start_N1)
        u, v = self.tables().values()
        row_R, local_P = torch.unique(expert_P, return_inverse=True)
        pre_P = row_dots(at_least_float32(x_ND), u.rows(row_R), local_P, start_N1, token_P)
        pre_P = pre_P + at_least_float32(self.bias)[expert_P]
        hidden_P = activation(self.spec.activation).f(pre_P)
        return Pairs(
            token_P=token_P,
            expert_P=expert_P,
            gate_P=gate_P,
            pre_PM=pre_P[:, None],
            norm_P=(gate_P * hidden_P).abs() * v.rows(row_R).norm(dim=1)[local_P],
        )

    def state_bytes(self) -> int:
        return (
            sum(table.state_bytes() for table in self.tables().values()) + self.bias.nbytes + self.index.state_bytes()
        )

    def check(self, path: str) -> None:
        self.index.check(f"{path}.index")


class PeerExperts(PeerLayer):
    """Float experts, their tables parameters."""

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        self.u = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.v = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.ready: Derived[fired_sum.ExpertLayer] = Derived()

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        if routing.packed is not None and (library := cpu_library_for(x_ND)) is not None:
            u, v = (self.u, None), (self.v, None)
            layer = self.ready.of(
                self, library, lambda: expert_layer(library, self.spec, self.index, u, self.bias, v, self.axis_bias)
            )
            return layer(x_ND.contiguous(), routing.packed)
        y_ND = self.sum_of_pairs(x_ND, *self.index(routing))
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def sum_of_pairs(self, x_ND: Tensor, expert_P: Tensor, start_N1: Tensor, gate_P: Tensor) -> Tensor:
        return expert_sum(x_ND, self.u, self.bias, self.v, expert_P, start_N1, gate_P, self.spec.activation)

    def tables(self) -> Mapping[str, Table]:
        return {"u": ParameterTable(self.u), "v": ParameterTable(self.v)}
