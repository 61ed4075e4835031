"""PEER experts whose tables are no parameters: floats, int8 and int4, read as they are, with no float copy of them.

int8 is symmetric with one scale a row; int4 is the nibble plane w with the scale of one step, and while it trains a
second plane, the accumulator, that the forward pass never reads (kernels/sr_update).
"""

# N tokens, D model width, E experts, P pairs (a token and an expert)

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from kernels.backends import CpuLibrary, cpu_library_for
from kernels.expert_sum import expert_sum, expert_sum_backward, expert_sum_forward
from kernels.expert_sum.grouped import grouped_expert_sum
from kernels.fired_sum import ExpertLayer
from kernels.pairs import pairs_by_row, tokens_of_pairs
from kernels.sr_update import RowGradients
from pipeline.models.contract import Table, wanted
from pipeline.models.derived import Derived
from pipeline.models.number_types import outside_autocast
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.experts import AxisBias, PeerLayer, expert_layer
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.floats import FloatTable
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table

StoredTable = FloatTable | Int8Table | Int4Table
T = TypeVar("T")


class TableExperts(PeerLayer):
    """PEER experts over tables that no autograd leaf holds, of any precision; biases stay float.

    While `trains`, a backward pass leaves the tables' gradients in `gradients` as weighted pairs.
    """

    def __init__(self, spec: PeerSpec, d_model: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec)
        self.u, self.v = table_of(spec, d_model), table_of(spec, d_model)
        self.bias = nn.Parameter(torch.zeros(spec.num_experts))
        self.axis_bias = AxisBias(spec, d_model) if spec.axis_bias else None
        self.gradients: tuple[RowGradients, RowGradients] | None = None
        """Of u and v, from the last backward pass; whoever updates the tables takes them."""
        self.trains = spec.accumulator
        self.ready: Derived[ExpertLayer] = Derived()

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: PeerRouting) -> Tensor:
        library = cpu_library_for(x_ND)
        if routing.packed is not None and library is not None and self.spec.scale_groups == 1:
            layer = self.ready.of(self, library, lambda: self._layer(library))
            return layer(x_ND.contiguous(), routing.packed)
        expert_P, start_N1, gate_P = self.index(routing)
        if self.trains and torch.is_grad_enabled():
            y_ND = _TapedExpertSum.apply(x_ND, self.bias, gate_P, expert_P, start_N1, self)
        else:
            y_ND = self.sum_of_pairs(x_ND, expert_P, start_N1, gate_P)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing)

    def sum_of_pairs(self, x_ND: Tensor, expert_P: Tensor, start_N1: Tensor, gate_P: Tensor) -> Tensor:
        if self.spec.scale_groups > 1:
            u, v = ((table.stored, table.scale_EG) for table in self.tables_of(Int4Table).values())
            return grouped_expert_sum(x_ND, *u, self.bias, *v, expert_P, start_N1, gate_P, self.spec.activation)
        u, v, scales = self.u.stored, self.v.stored, (self.u.scales, self.v.scales)
        return expert_sum(x_ND, u, self.bias, v, expert_P, start_N1, gate_P, self.spec.activation, scales)

    def tables(self) -> Mapping[str, Table]:
        return {"u": self.u, "v": self.v}

    def tables_of(self, kind: type[T]) -> dict[str, T]:
        """The same. ValueError where they are of another kind."""
        return {name: wanted(table, kind, f"table {name}") for name, table in self.tables().items()}

    def _layer(self, library: CpuLibrary) -> tuple[ExpertLayer, tuple[Tensor, ...]]:
        u, v = (self.u.stored, self.u.scales), (self.v.stored, self.v.scales)
        return expert_layer(library, self.spec, self.index, u, self.bias, v, self.axis_bias)


def table_of(spec: PeerSpec, width: int) -> StoredTable:
    """Of the precision that the spec names."""
    return _MADE[spec.precision](spec, width)


_MADE: Mapping[str, Callable[[PeerSpec, int], StoredTable]] = {
    "float32": lambda spec, width: FloatTable(spec.num_experts, width, torch.float32),
    "bfloat16": lambda spec, width: FloatTable(spec.num_experts, width, torch.bfloat16),
    "int8": lambda spec, width: Int8Table(spec.num_experts, width),
    "int4": lambda spec, width: Int4Table(
        spec.num_experts, width, accumulator=spec.accumulator, groups=spec.scale_groups
    ),
}
"""Tables of precision float are parameters, of PeerExperts."""


class _TapedExpertSum(torch.autograd.Function):
    """expert_sum whose tables are no autograd leaves: their gradients stay weighted pairs, left with the layer."""

    @staticmethod
    def forward(ctx, x_ND, bias_E, gate_P, expert_P, start_N1, layer):  # noqa: ANN001, ANN205 - torch's own protocol
        u, v = layer.u, layer.v
        y_ND, pre_P = expert_sum_forward(
            x_ND, u.stored, u.scales, bias_E, v.stored, v.scales, expert_P, start_N1, gate_P, layer.spec.activation
        )
        ctx.save_for_backward(x_ND, expert_P, start_N1, gate_P, pre_P)
        ctx.layer = layer
        return y_ND

    @staticmethod
    def backward(ctx, dy_ND):  # type: ignore[override]  # noqa: ANN001, ANN205
        x_ND, expert_P, start_N1, gate_P, pre_P = ctx.saved_tensors
        u, v, spec = ctx.layer.u, ctx.layer.v, ctx.layer.spec
        dx_ND, dgate_P, du_P, dv_P = expert_sum_backward(
            dy_ND, u.stored, u.scales, v.stored, v.scales, expert_P, start_N1, gate_P, pre_P, spec.activation
        )
        if ctx.layer.gradients is not None:
            raise AssertionError("the tables have not taken the gradients of the backward pass before this one")
        order_P, row_R, start_R1 = pairs_by_row(expert_P)
        token_P = tokens_of_pairs(start_N1)[order_P]
        ctx.layer.gradients = (
            RowGradients(x_ND.detach(), row_R, start_R1, token_P, du_P[order_P]),
            RowGradients(dy_ND, row_R, start_R1, token_P, dv_P[order_P]),
        )
        dbias_E = du_P.new_zeros(spec.num_experts).index_add(0, expert_P, du_P)
        return dx_ND, dbias_E, dgate_P, None, None, None
