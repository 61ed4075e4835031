"""Symbolic experts as tables, and the module that holds them; kernels/symbol_table executes them.

Nothing here is text that is evaluated: an expert is a tier, a function code, a few coordinates with coefficients, and
for logic tiers a gate of the block's circuit over literals. `SymbolExperts.check` refuses tables that point outside
themselves.
"""

# N tokens, D model width, E experts, K coordinates a formula may name, F experts with dense u, L literals, G gates,
# V vocabulary, P pairs (a token and an expert), W experts with a spline

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kernels.activations import activation
from kernels.backends import CpuLibrary, cpu_library_for
from kernels.errors import Mistake
from kernels.symbol_table import SymbolLayer, stock, symbol_table
from kernels.symbol_table.checks import check_tables
from kernels.symbol_table.functions import FUNCTIONS
from kernels.symbol_table.tables import SymbolTables, context_of
from kernels.symbol_table.tables import shapes as table_shapes
from pipeline.models.contract import Chosen, ExpertLayer, Pairs, Table, bytes_of
from pipeline.models.derived import Derived
from pipeline.models.literals import Literals
from pipeline.models.number_types import FixedFormat, at_least_float32, outside_autocast
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.experts import AxisBias
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.registry import LayerKind
from pipeline.models.soundness import takes
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.transformer import TransformerSpec

Counts = tuple[Annotated[int, Field(ge=0, le=2**30)], ...]
"""One a block."""


class SymbolSpec(BaseModel):
    """Shape of the symbolic expert tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["symbols"] = "symbols"
    peer: PeerSpec = Field(description="Router and pool of the PEER model that was distilled.")
    vocab_size: int = Field(ge=2, le=2**16, description="Tokens that literals speak of.")
    coordinates: int = Field(default=16, ge=1, le=4096, description="Most coordinates of x that a formula names.")
    places: int = Field(default=3, ge=1, le=64, description="Tokens that literals look at, the current one included.")
    num_dense: Counts = Field(description="Experts with a dense u, for each block.")
    num_literals: Counts = Field(description="Literals, for each block.")
    num_gates: Counts = Field(description="Gates of the circuit of all firing rules, for each block.")
    num_splines: Counts = Field(description="Experts whose function is a spline, for each block.")

    def check_fits(self, transformer: TransformerSpec) -> None:
        """ValueError unless these are the tables of as many blocks, over the same vocabulary."""
        for name in ("num_dense", "num_literals", "num_gates", "num_splines"):
            counts = getattr(self, name)
            if len(counts) != transformer.num_layers:
                raise Mistake(f"{name} is of {len(counts)} blocks, and num_layers={transformer.num_layers}")
        if self.vocab_size != transformer.vocab_size:
            raise Mistake(f"literals speak of {self.vocab_size} tokens, and vocab_size={transformer.vocab_size}")

    @property
    def kind(self) -> str:
        return "symbols"


_CHECKED_BY_KERNELS = (
    "scale_E", "offset_E", "coefficient_EK", "intercept_E", "dense_u_FD", "spline_low_W", "spline_high_W",
    "spline_coefficient_WK",
)  # fmt: skip
"""All floats of its own: kernels/symbol_table names them as what they are."""


@dataclass(slots=True)
class SymbolRouting:
    """What firing rules speak of: the cells reached, and the tokens themselves."""

    cells: PeerRouting
    tokens_BT: Tensor


class SymbolRouter(nn.Module):
    """The float router of the PEER model, with the tokens kept for the literals."""

    def __init__(self, spec: SymbolSpec, d_model: int) -> None:
        super().__init__()
        self.scores = PeerRouter(spec.peer, d_model)

    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> SymbolRouting:
        return SymbolRouting(self.scores(x_ND, tokens_BT), tokens_BT)


@takes(lambda experts: dict.fromkeys(_CHECKED_BY_KERNELS))
class SymbolExperts(FixedFormat, ExpertLayer):
    """y = sum over experts whose rule is true of gate * (scale * f(z) + offset) * v; z is sparse in x, or dense (T0).

    Exact tiers (T0, T1) fire where A_r + B_c > threshold, with the router's gate; logic tiers (T2, T3) where their
    rule, a gate of the block's circuit, is true, with gate 1 (it is folded into scale and offset).
    """

    tier_E: Tensor
    code_E: Tensor
    scale_E: Tensor
    offset_E: Tensor
    index_EK: Tensor
    coefficient_EK: Tensor
    intercept_E: Tensor
    dense_row_E: Tensor
    dense_u_FD: Tensor
    rule_E: Tensor
    gate_G: Tensor
    wire_a_G: Tensor
    wire_b_G: Tensor
    member_LV: Tensor
    literal_offset_L: Tensor
    spline_row_E: Tensor
    spline_low_W: Tensor
    spline_high_W: Tensor
    spline_coefficient_WK: Tensor

    def __init__(self, spec: SymbolSpec, d_model: int, layer: int) -> None:
        super().__init__()
        self.spec = spec
        self.index = CellIndex(spec.peer)
        self.v = Int4Table(spec.peer.num_experts, d_model, accumulator=False)
        self.axis_bias = AxisBias(spec.peer, d_model) if spec.peer.axis_bias else None
        shapes = table_shapes(
            d_model=d_model, experts=spec.peer.num_experts, coordinates=spec.coordinates,
            dense=spec.num_dense[layer], gates=spec.num_gates[layer], literals=spec.num_literals[layer],
            vocabulary=spec.vocab_size, splines=spec.num_splines[layer],
        )  # fmt: skip
        for name, (shape, dtype) in shapes.items():
            if name in self.__annotations__:
                self.register_buffer(name, torch.zeros(shape, dtype=dtype))
        self.ready: Derived[SymbolLayer] = Derived()

    @property
    def literals(self) -> Literals:
        return Literals(self.member_LV, self.literal_offset_L)

    @property
    def num_experts(self) -> int:
        return self.spec.peer.num_experts

    @property
    def symbol_tables(self) -> SymbolTables:
        """All that kernels/symbol_table executes."""
        own = {name: getattr(self, name) for name in SymbolTables._fields[1:-2]}
        return SymbolTables(self.index.stored.row(), v_EB=self.v.weight_EB, v_scale_E=self.v.scale_E, **own)

    def check(self, path: str) -> None:
        """ValueError that names the first table entry that is out of range or not finite."""
        self.index.check(f"{path}.index")
        try:
            check_tables(self.symbol_tables, places=self.spec.places)
        except ValueError as error:
            raise Mistake(f"{path}, {error}") from None

    def state_bytes(self) -> int:
        return bytes_of(self) - (0 if self.axis_bias is None else bytes_of(self.axis_bias))

    def tables(self) -> Mapping[str, Table]:
        """v alone: u is in formulas."""
        return {"v": self.v}

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: SymbolRouting) -> Pairs:
        """Where a statement is true: with the gate of its cell if it fires exactly, with gate 1 if by logic."""
        fired, tables = self._fired(routing), self.symbol_tables
        order_P = torch.argsort(fired[0], stable=True)
        token_P, expert_P, gate_P = (of_P[order_P] for of_P in fired)
        pre_P = stock.arguments(at_least_float32(x_ND), token_P, expert_P, tables)
        row_R, local_P = torch.unique(expert_P, return_inverse=True)
        strength_P = gate_P * stock.magnitudes_at(pre_P, expert_P, tables)
        norm_P = strength_P.abs() * self.v.rows(row_R).norm(dim=1)[local_P]
        return Pairs(token_P=token_P, expert_P=expert_P, gate_P=gate_P, pre_PM=pre_P[:, None], norm_P=norm_P)

    @outside_autocast
    def added(self, x_ND: Tensor, routing: SymbolRouting, chosen: Chosen) -> Tensor:
        fired, wide_ND = self._fired(routing), at_least_float32(x_ND)
        chosen_P = chosen.among(fired[0], fired[1], self.num_experts)
        token_P, expert_P, gate_P = (of_P[chosen_P] for of_P in fired)
        strength_P = gate_P * stock.magnitudes(wide_ND, token_P, expert_P, self.symbol_tables)
        row_R, local_P = torch.unique(expert_P, return_inverse=True)
        part_PD = strength_P[:, None] * self.v.rows(row_R)[local_P]
        return torch.zeros_like(wide_ND).index_add(0, token_P, part_PD).type_as(x_ND)

    @outside_autocast
    def forward(self, x_ND: Tensor, routing: SymbolRouting) -> Tensor:
        cells = routing.cells
        if cells.packed is not None and (library := cpu_library_for(x_ND)) is not None:
            return self._layer(library)(x_ND.contiguous(), cells.packed, routing.tokens_BT)
        wide_ND, gate_P = at_least_float32(x_ND), at_least_float32(cells.gate_P)
        y_ND = symbol_table(
            wide_ND, cells.cell_P, cells.start_N1, gate_P, routing.tokens_BT, self.symbol_tables, self.spec.places
        ).type_as(x_ND)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(cells)

    def _fired(self, routing: SymbolRouting) -> tuple[Tensor, Tensor, Tensor]:
        """(P) token, expert and gate wherever a statement is true."""
        cells, context_ON = routing.cells, context_of(routing.tokens_BT, self.spec.places)
        gate_P = at_least_float32(cells.gate_P)
        return stock.firings(cells.cell_P, cells.start_N1, gate_P, context_ON, self.symbol_tables)

    def _layer(self, library: CpuLibrary) -> SymbolLayer:
        """As C++ runs it, made ready again when a table or a bias changes."""

        def make() -> tuple[SymbolLayer, tuple[Tensor, ...]]:
            peer, axis_bias = self.spec.peer, self.axis_bias
            biases = None if axis_bias is None else (axis_bias.row, axis_bias.column)
            sizes = peer.num_heads, peer.num_keys, peer.num_columns
            layer = SymbolLayer(library, self.symbol_tables, self.spec.places, biases, sizes)
            return layer, (*self.index.stored, *layer.copied)

        return self.ready.of(self, library, make)

    def logic_firings(self, expert_X: Tensor, context_ON: Tensor) -> tuple[Tensor, Tensor]:
        """(P) token and expert wherever an expert's rule is true."""
        return stock.logic_firings(expert_X, context_ON, self.symbol_tables)

    def magnitudes(self, x_ND: Tensor, token_P: Tensor, expert_P: Tensor) -> Tensor:
        """(P): scale * f(z) + offset of these experts on these tokens."""
        return stock.magnitudes(x_ND, token_P, expert_P, self.symbol_tables)


def activation_code(name: str) -> int:
    """The catalogue code of a model's activation."""
    activation(name)
    return [known for known, _ in FUNCTIONS].index(name)


SYMBOLS = LayerKind(
    spec=SymbolSpec,
    artifact_kinds=("symbols",),
    router=lambda spec, d_model, layer: None if layer % spec.peer.router_group else SymbolRouter(spec, d_model),
    experts=SymbolExperts,
    cells=lambda experts: experts.index.row_and_column_of_experts(experts.spec.peer.num_columns),
    fits=SymbolSpec.check_fits,
    reads=lambda spec: spec.places,
)
