"""Symbolic experts as tables, and the module that executes them.

Nothing here is text that is evaluated: an expert is a tier, a function code, a few coordinates with coefficients, and
for logic tiers one gate over two literals. `SymbolExperts.check` refuses tables that point outside themselves.
"""

# N tokens, D model width, E experts, K coordinates a formula may name, F experts with dense u, L literals,
# V vocabulary, P pairs (a token and an expert), W experts with a spline

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kernels.activations import activation
from kernels.expert_sum.bags import bag_sum
from pipeline.models.peer import AxisBias, CellIndex, PeerRouter, PeerRouting, PeerSpec, starts
from pipeline.models.quantized import Int4Table
from pipeline.symbolic.functions import BY_CODE, SPLINE_CODE, apply_codes
from pipeline.symbolic.logic import GATE_OUTPUT_G4, Literals, context_of
from pipeline.symbolic.spline import KNOTS, Splines, evaluate_pairs
from pipeline.symbolic.tiers import Tier


class SymbolSpec(BaseModel):
    """Shape of the symbolic expert tables."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["symbols"] = "symbols"
    peer: PeerSpec = Field(description="Router and pool of the PEER model that was distilled.")
    vocab_size: int = Field(ge=2, le=2**16, description="Tokens that literals speak of.")
    coordinates: int = Field(default=16, ge=1, le=4096, description="Most coordinates of x that a formula names.")
    places: int = Field(default=3, ge=1, le=64, description="Tokens that literals look at, the current one included.")
    num_dense: tuple[int, ...] = Field(description="Experts with a dense u, for each block.")
    num_literals: tuple[int, ...] = Field(description="Literals, for each block.")
    num_splines: tuple[int, ...] = Field(description="Experts whose function is a spline, for each block.")

    @property
    def kind(self) -> str:
        return "symbols"


@dataclass(frozen=True, slots=True)
class SymbolRouting:
    """What firing rules speak of: the cells reached, and the tokens themselves."""

    cells: PeerRouting
    context_ON: Tensor


class SymbolRouter(nn.Module):
    """The float router of the PEER model, with the tokens kept for the literals."""

    def __init__(self, spec: SymbolSpec, d_model: int) -> None:
        super().__init__()
        self.scores = PeerRouter(spec.peer, d_model)
        self.places = spec.places

    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> SymbolRouting:
        return SymbolRouting(self.scores(x_ND, tokens_BT), context_of(tokens_BT, self.places))


class SymbolExperts(nn.Module):
    """y = sum over experts whose rule is true of gate * (scale * f(z) + offset) * v; z is sparse in x, or dense (T0).

    Exact tiers (T0, T1) fire where A_r + B_c > threshold, with the router's gate; logic tiers (T2, T3) where their
    gate of two literals is true, with gate 1 (it is folded into scale and offset).
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
    gate_E: Tensor
    literal_a_E: Tensor
    literal_b_E: Tensor
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
        experts, splines = spec.peer.num_experts, spec.num_splines[layer]
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "tier_E": ((experts,), torch.uint8),
            "code_E": ((experts,), torch.uint8),
            "scale_E": ((experts,), torch.float32),
            "offset_E": ((experts,), torch.float32),
            "index_EK": ((experts, spec.coordinates), torch.int16),
            "coefficient_EK": ((experts, spec.coordinates), torch.float32),
            "intercept_E": ((experts,), torch.float32),
            "dense_row_E": ((experts,), torch.int32),
            "dense_u_FD": ((spec.num_dense[layer], d_model), torch.float32),
            "gate_E": ((experts,), torch.uint8),
            "literal_a_E": ((experts,), torch.int32),
            "literal_b_E": ((experts,), torch.int32),
            "member_LV": ((spec.num_literals[layer], spec.vocab_size), torch.bool),
            "literal_offset_L": ((spec.num_literals[layer],), torch.uint8),
            "spline_row_E": ((experts,), torch.int32),
            "spline_low_W": ((splines,), torch.float32),
            "spline_high_W": ((splines,), torch.float32),
            "spline_coefficient_WK": ((splines, KNOTS + 2), torch.float32),
        }
        for name, (shape, dtype) in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))

    @property
    def literals(self) -> Literals:
        return Literals(self.member_LV, self.literal_offset_L)

    def check(self) -> None:
        """ValueError that names the first table entry that is out of range or not finite."""
        d_model = self.v.weight_EB.shape[1] * 2
        last_literal = max(0, len(self.member_LV) - 1)
        limits = {
            "tier_E": int(max(Tier)),
            "index_EK": d_model - 1,
            "gate_E": len(GATE_OUTPUT_G4) - 1,
            "literal_a_E": last_literal,
            "literal_b_E": last_literal,
            "literal_offset_L": self.spec.places - 1,
            "dense_row_E": max(0, len(self.dense_u_FD) - 1),
            "spline_row_E": max(0, len(self.spline_low_W) - 1),
        }
        for name, most in limits.items():
            table = getattr(self, name)
            if table.numel() and not 0 <= int(table.min()) <= int(table.max()) <= most:
                raise ValueError(f"symbolic experts: {name} holds a value outside 0 to {most}")
        users = {
            "dense_row_E": (self.tier_E == Tier.T0, self.dense_u_FD),
            "spline_row_E": (self.code_E == SPLINE_CODE, self.spline_low_W),
            "literal_a_E": ((self.tier_E == Tier.T2) | (self.tier_E == Tier.T3), self.member_LV),
        }
        for name, (uses_E, table) in users.items():
            if len(table) == 0 and bool(uses_E.any()):
                raise ValueError(f"symbolic experts: {name} points into a table without rows")
        start_C1 = self.index.cell_start_C1
        if int(start_C1[0]) != 0 or int(start_C1[-1]) != len(self.tier_E) or bool((start_C1.diff() < 0).any()):
            raise ValueError(f"symbolic experts: cell_start_C1 does not rise from 0 to {len(self.tier_E)}")
        if not bool((self.spline_low_W < self.spline_high_W).all()):
            raise ValueError("symbolic experts: spline_low_W is not below spline_high_W")
        codes = {*BY_CODE, SPLINE_CODE}
        if unknown := set(torch.unique(self.code_E).tolist()) - codes:
            raise ValueError(f"symbolic experts: code_E holds {sorted(unknown)}, which are not in the catalogue")
        for name, table in self.named_buffers():
            if table.is_floating_point() and not bool(torch.isfinite(table).all()):
                raise ValueError(f"symbolic experts: {name} holds a value that is not finite")

    def forward(self, x_ND: Tensor, routing: SymbolRouting) -> Tensor:
        token_P, expert_P, gate_P = self._firings(len(x_ND), routing)
        order_P = torch.argsort(token_P, stable=True)
        token_P, expert_P, gate_P = token_P[order_P], expert_P[order_P], gate_P[order_P]
        magnitude_P = self.magnitudes(x_ND, token_P, expert_P)
        row_R, local_P = torch.unique(expert_P, return_inverse=True)
        start_N1 = starts(torch.bincount(token_P, minlength=len(x_ND)))
        y_ND = bag_sum(self.v.rows(row_R), local_P, start_N1, gate_P * magnitude_P)
        return y_ND if self.axis_bias is None else y_ND + self.axis_bias(routing.cells)

    def _firings(self, num_tokens: int, routing: SymbolRouting) -> tuple[Tensor, Tensor, Tensor]:
        """(P) token, expert and gate of every statement that is true, in no order."""
        expert_P, start_N1, gate_P = self.index(routing.cells)
        token_P = torch.repeat_interleave(torch.arange(num_tokens), start_N1.diff())
        exact_P = self.tier_E[expert_P] <= Tier.T1
        logical_X = torch.nonzero((self.tier_E == Tier.T2) | (self.tier_E == Tier.T3))[:, 0]
        logic_token_P, logic_expert_P = self.logic_firings(logical_X, routing.context_ON)
        return (
            torch.cat([token_P[exact_P], logic_token_P]),
            torch.cat([expert_P[exact_P], logic_expert_P]),
            torch.cat([gate_P[exact_P], gate_P.new_ones(len(logic_token_P))]),
        )

    def logic_firings(self, expert_X: Tensor, context_ON: Tensor) -> tuple[Tensor, Tensor]:
        """(P) token and expert wherever the gate of an expert's two literals is true."""
        if len(expert_X) == 0:
            empty = torch.zeros(0, dtype=torch.int64)
            return empty, empty
        a_X, b_X = self.literal_a_E[expert_X].long(), self.literal_b_E[expert_X].long()
        named_U, where = torch.unique(torch.cat([a_X, b_X]), return_inverse=True)
        value_NU = self.literals.values(context_ON, named_U).T
        a_NX, b_NX = value_NU[:, where[: len(a_X)]], value_NU[:, where[len(a_X) :]]
        true_NX = GATE_OUTPUT_G4[self.gate_E[expert_X].long()[None], 2 * a_NX.long() + b_NX.long()]
        token_P, at_P = torch.nonzero(true_NX, as_tuple=True)
        return token_P, expert_X[at_P]

    def magnitudes(self, x_ND: Tensor, token_P: Tensor, expert_P: Tensor) -> Tensor:
        """(P): scale * f(z) + offset of these experts on these tokens."""
        z_P = torch.empty_like(token_P, dtype=torch.float32)
        dense_P = self.tier_E[expert_P] == Tier.T0
        u_PD = self.dense_u_FD[self.dense_row_E[expert_P[dense_P]].long()]
        z_P[dense_P] = (u_PD * x_ND[token_P[dense_P]]).sum(-1)
        sparse_P = ~dense_P
        index_PK = self.index_EK[expert_P[sparse_P]].long()
        x_PK = x_ND.flatten()[token_P[sparse_P][:, None] * x_ND.shape[1] + index_PK]
        z_P[sparse_P] = (self.coefficient_EK[expert_P[sparse_P]] * x_PK).sum(-1)
        z_P += self.intercept_E[expert_P]

        code_P = self.code_E[expert_P]
        spline_P = code_P == SPLINE_CODE
        value_P = torch.empty_like(z_P)
        value_P[~spline_P] = apply_codes(code_P[~spline_P], z_P[~spline_P])
        splines = Splines(self.spline_low_W, self.spline_high_W, self.spline_coefficient_WK)
        value_P[spline_P] = evaluate_pairs(splines, self.spline_row_E[expert_P[spline_P]].long(), z_P[spline_P])
        return self.scale_E[expert_P] * value_P + self.offset_E[expert_P]


def activation_code(name: str) -> int:
    """The catalogue code of a model's activation."""
    activation(name)
    return next(function.code for function in BY_CODE.values() if function.name == name)
