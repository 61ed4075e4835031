"""Monet: mixture of monosemantic experts, horizontal and vertical decomposition (arXiv 2412.04139).

Parameter names and numerics are those of the public release, so that its checkpoints open. Where its code and the
paper differ, the code is followed: both routers read the whole input, and the softmax is over raw logits.
"""

# N tokens, D model width, H router heads, I and J the n sub-experts of an axis, M hidden units of an expert,
# P pairs (a token and a composed expert), F half of M, O half of D, or what of it
# outputs span

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.activations import activation
from kernels.errors import Mistake
from kernels.monet_mix import monet_mix
from kernels.pairs import pairs_by_row, reached
from pipeline.models.axis_threshold import axis_deviations, fit_norm, passing_logits
from pipeline.models.contract import Chosen, ExpertLayer, Pairs, Table, Vectors, bytes_of, wanted
from pipeline.models.number_types import FullStatistics
from pipeline.models.registry import LayerKind, Use
from pipeline.models.transformer import Visit

GATES_A_PIECE = 2**20
"""Of tokens and composed experts, those that lie in memory at a time."""


class MonetSpec(BaseModel):
    """Shape of Monet's router and experts: n * n composed experts out of n sub-experts an axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["monet"] = "monet"
    decomposition: Literal["horizontal", "vertical"] = Field(
        default="horizontal",
        description="How a composed expert is cut: at its hidden units, or through its output too.",
    )
    num_sub_experts: int = Field(
        default=32, ge=2, le=4096, description="n, sub-experts an axis; n * n composed experts."
    )
    d_expert: int = Field(default=16, ge=1, le=1024, description="m, hidden units of an expert (even if vertical).")
    num_heads: int = Field(default=2, ge=1, le=64, description="H, router heads.")
    active_sub_experts: int = Field(
        default=4,
        ge=1,
        le=4096,
        description="k, sub-experts a head and axis that pass the threshold on average; below n.",
    )
    router_group: int = Field(
        default=2, ge=1, le=256, description="Blocks that share one router, the lowest of them owning it."
    )

    @model_validator(mode="after")
    def _fits(self) -> "MonetSpec":
        if self.active_sub_experts >= self.num_sub_experts:
            raise Mistake(
                f"active_sub_experts={self.active_sub_experts} must be below num_sub_experts={self.num_sub_experts}"
            )
        if self.decomposition == "vertical" and self.d_expert % 2:
            raise Mistake(f"d_expert={self.d_expert} is odd; the vertical decomposition halves it, use an even number")
        return self

    @property
    def kind(self) -> str:
        return "monet"

    @property
    def threshold_deviations(self) -> float:
        """tau of the axis threshold, mean + tau standard deviations."""
        return axis_deviations(self.active_sub_experts, self.num_sub_experts)


@dataclass(frozen=True, slots=True)
class MonetRouting:
    """Sparse gates of the two axes; each head's sum to 1."""

    gate1_NHI: Tensor
    gate2_NHJ: Tensor


class MonetRouter(FullStatistics):
    """Two linear maps to H * n logits; a sub-expert passes if its logit is above a quantile of its head's logits.

    The quantile comes from batch normalisation, one mean and variance a head over tokens and sub-experts; at least
    the best sub-expert passes. No gradient flows through the threshold.
    """

    def __init__(self, spec: MonetSpec, d_model: int) -> None:
        super().__init__()
        self.num_heads, self.deviations = spec.num_heads, spec.threshold_deviations
        self.w1 = nn.Linear(d_model, spec.num_heads * spec.num_sub_experts, bias=False)
        self.w2 = nn.Linear(d_model, spec.num_heads * spec.num_sub_experts, bias=False)
        self.norm1 = nn.BatchNorm1d(spec.num_heads, affine=False)
        self.norm2 = nn.BatchNorm1d(spec.num_heads, affine=False)
        for linear in (self.w1, self.w2):
            nn.init.normal_(linear.weight, std=d_model**-0.5)

    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> MonetRouting:
        return MonetRouting(self._gate(x_ND, self.w1, self.norm1), self._gate(x_ND, self.w2, self.norm2))

    def _gate(self, x_ND: Tensor, linear: nn.Linear, norm: nn.Module) -> Tensor:
        logits_NHI = linear(x_ND).unflatten(-1, (self.num_heads, -1))
        return torch.softmax(passing_logits(logits_NHI, norm, self.deviations), dim=-1)


@dataclass(frozen=True, slots=True)
class Neurons:
    """A Monet layer written out: neuron (i, j, m) reads u, adds v; the axes' output biases stay apart."""

    u_IJMD: Tensor
    bias_IJM: Tensor
    v_IJMD: Tensor
    row_ID: Tensor
    column_JD: Tensor


class MonetExperts(ExpertLayer):
    """The n * n experts that are composed of the sub-experts of two axes; expert (i, j) has the number i * n + j."""

    num_sub_experts: int

    @property
    def num_experts(self) -> int:
        return self.num_sub_experts**2

    @abstractmethod
    def neurons(self) -> Neurons:
        """All of them, repeated where they are shared (Monet eq. 6 and 13)."""

    @abstractmethod
    def vectors(self, row_R: Tensor) -> Vectors:
        """The same of some experts; their output biases stay out."""

    def tables(self) -> Mapping[str, Table]:
        return {}

    def state_bytes(self) -> int:
        return bytes_of(self)

    def check(self, path: str) -> None:
        """All of it are single numbers."""


class MoHDE(MonetExperts):
    """Horizontal: expert (i, j) is V_j act(U_i x + b_i) + b_j (Monet eq. 6 to 12)."""

    def __init__(self, spec: MonetSpec, d_model: int) -> None:
        super().__init__()
        self.num_sub_experts = spec.num_sub_experts
        self.act = activation("relu2").f
        width = spec.num_sub_experts * spec.d_expert
        self.u = nn.Linear(d_model, width)
        self.v = nn.Linear(width, d_model, bias=False)
        self.b = nn.Parameter(torch.zeros(spec.num_sub_experts, d_model))
        _lecun(self.u, self.v)

    def forward(self, x_ND: Tensor, routing: MonetRouting) -> Tensor:
        hidden_NIM = self.act(self.u(x_ND).unflatten(-1, (self.num_sub_experts, -1)))
        g1, g2 = routing.gate1_NHI.type_as(hidden_NIM), routing.gate2_NHJ.type_as(hidden_NIM)
        return self.v(monet_mix(hidden_NIM, g1, g2).flatten(1)) + g2.sum(1) @ self.b

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: MonetRouting) -> Pairs:
        pre_NIM = self.u(x_ND).unflatten(-1, (self.num_sub_experts, -1))
        turned_JOM = _turned(_columns(self.v.weight, self.num_sub_experts), self.b)

        def norms(pre_PM: Tensor, i_P: Tensor, j_P: Tensor) -> Tensor:
            return _norms(self.act(pre_PM), j_P, turned_JOM)

        return _pairs(routing, lambda token_P, i_P, j_P: pre_NIM[token_P, i_P], norms)

    def added(self, x_ND: Tensor, routing: MonetRouting, chosen: Chosen) -> Tensor:
        n, (token_P, i_P, j_P, gate_P) = self.num_sub_experts, _chosen_pairs(routing, chosen)
        hidden_PM = self.act(_mapped(x_ND[token_P], i_P, _rows(self.u.weight, n), _rows(self.u.bias, n)))
        out_PD = _mapped(hidden_PM, j_P, _columns(self.v.weight, n).mT, self.b)
        return _summed(token_P, gate_P, out_PD, len(x_ND))

    def neurons(self) -> Neurons:
        n = self.num_sub_experts
        u_IMD, bias_IM, v_JMD = _rows(self.u.weight, n), _rows(self.u.bias, n), _columns(self.v.weight, n)
        m, d = u_IMD.shape[1:]
        return Neurons(
            u_IJMD=u_IMD[:, None].expand(n, n, m, d),
            bias_IJM=bias_IM[:, None].expand(n, n, m),
            v_IJMD=v_JMD[None].expand(n, n, m, d),
            row_ID=torch.zeros_like(self.b),
            column_JD=self.b,
        )

    def vectors(self, row_R: Tensor) -> Vectors:
        n = self.num_sub_experts
        u_IMD, v_JMD = _rows(self.u.weight, n), _columns(self.v.weight, n)
        return Vectors(input_RMD=u_IMD[row_R // n], output_RMD=v_JMD[row_R % n])


class MoVDE(MonetExperts):
    """Vertical: expert (i, j) stacks half of its hidden units and half of its output from each axis (eq. 13 to 15)."""

    def __init__(self, spec: MonetSpec, d_model: int) -> None:
        super().__init__()
        self.num_sub_experts = spec.num_sub_experts
        self.act = activation("relu2").f
        width, half = spec.num_sub_experts * spec.d_expert // 2, d_model // 2
        self.u1, self.u2 = nn.Linear(d_model, width), nn.Linear(d_model, width)
        self.v11, self.v12 = nn.Linear(width, half, bias=False), nn.Linear(width, half, bias=False)
        self.v21, self.v22 = nn.Linear(width, half, bias=False), nn.Linear(width, half, bias=False)
        self.b1 = nn.Parameter(torch.zeros(spec.num_sub_experts, half))
        self.b2 = nn.Parameter(torch.zeros(spec.num_sub_experts, half))
        _lecun(self.u1, self.u2, self.v11, self.v12, self.v21, self.v22)

    def forward(self, x_ND: Tensor, routing: MonetRouting) -> Tensor:
        hidden1_NIM = self.act(self.u1(x_ND).unflatten(-1, (self.num_sub_experts, -1)))
        hidden2_NJM = self.act(self.u2(x_ND).unflatten(-1, (self.num_sub_experts, -1)))
        g1, g2 = routing.gate1_NHI.type_as(hidden1_NIM), routing.gate2_NHJ.type_as(hidden1_NIM)
        # A head's gates sum to 1 over the other axis, so the straight terms need only the marginals.
        marginal1_NI1, marginal2_NJ1 = g1.sum(1)[..., None], g2.sum(1)[..., None]
        top = (
            self.v11((hidden1_NIM * marginal1_NI1).flatten(1))
            + self.v12(monet_mix(hidden2_NJM, g2, g1).flatten(1))
            + g1.sum(1) @ self.b1
        )
        bottom = (
            self.v21(monet_mix(hidden1_NIM, g1, g2).flatten(1))
            + self.v22((hidden2_NJM * marginal2_NJ1).flatten(1))
            + g2.sum(1) @ self.b2
        )
        return torch.cat([top, bottom], dim=-1)

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: MonetRouting) -> Pairs:
        """An expert's neurons are those of its axis 1 and then those of its axis 2."""
        pre1_NIF, pre2_NJF = (u(x_ND).unflatten(-1, (self.num_sub_experts, -1)) for u in (self.u1, self.u2))
        v11_IFO, v12_IFO, v21_JFO, v22_JFO = (
            _columns(v.weight, self.num_sub_experts) for v in (self.v11, self.v12, self.v21, self.v22)
        )
        top_IOM = _turned(torch.cat([v11_IFO, v12_IFO], dim=1), self.b1)
        bottom_JOM = _turned(torch.cat([v21_JFO, v22_JFO], dim=1), self.b2)

        def pre(token_P: Tensor, i_P: Tensor, j_P: Tensor) -> Tensor:
            return torch.cat([pre1_NIF[token_P, i_P], pre2_NJF[token_P, j_P]], dim=-1)

        def norms(pre_PM: Tensor, i_P: Tensor, j_P: Tensor) -> Tensor:
            hidden_PM = self.act(pre_PM)
            return torch.hypot(_norms(hidden_PM, i_P, top_IOM), _norms(hidden_PM, j_P, bottom_JOM))

        return _pairs(routing, pre, norms)

    def added(self, x_ND: Tensor, routing: MonetRouting, chosen: Chosen) -> Tensor:
        n, (token_P, i_P, j_P, gate_P) = self.num_sub_experts, _chosen_pairs(routing, chosen)
        x_PD = x_ND[token_P]
        pre_PM = torch.cat(
            [
                _mapped(x_PD, axis_P, _rows(u.weight, n), _rows(u.bias, n))
                for axis_P, u in ((i_P, self.u1), (j_P, self.u2))
            ],
            dim=1,
        )
        hidden_PM = self.act(pre_PM)
        v11, v12, v21, v22 = (_columns(v.weight, n) for v in (self.v11, self.v12, self.v21, self.v22))
        top_PO = _mapped(hidden_PM, i_P, torch.cat([v11, v12], dim=1).mT, self.b1)
        bottom_PO = _mapped(hidden_PM, j_P, torch.cat([v21, v22], dim=1).mT, self.b2)
        out_PD = torch.cat([top_PO, bottom_PO], dim=1)
        return _summed(token_P, gate_P, out_PD, len(x_ND))

    def neurons(self) -> Neurons:
        n = self.num_sub_experts
        u1, u2 = (_rows(u.weight, n) for u in (self.u1, self.u2))
        bias1, bias2 = (_rows(u.bias, n) for u in (self.u1, self.u2))
        v11, v12, v21, v22 = (_columns(v.weight, n) for v in (self.v11, self.v12, self.v21, self.v22))
        half, d = u1.shape[1:]
        nothing = torch.zeros_like(self.b1)

        def pair(i_IX: Tensor, j_JX: Tensor) -> Tensor:
            """(I, J, ...) top half of the output from axis 1, bottom half from axis 2."""
            shape = (n, n, *i_IX.shape[1:])
            return torch.cat([i_IX[:, None].expand(shape), j_JX[None].expand(shape)], dim=-1)

        return Neurons(
            u_IJMD=torch.cat([u1[:, None].expand(n, n, half, d), u2[None].expand(n, n, half, d)], dim=2),
            bias_IJM=torch.cat([bias1[:, None].expand(n, n, half), bias2[None].expand(n, n, half)], dim=2),
            v_IJMD=torch.cat([pair(v11, v21), pair(v12, v22)], dim=2),
            row_ID=torch.cat([self.b1, nothing], dim=-1),
            column_JD=torch.cat([nothing, self.b2], dim=-1),
        )

    def vectors(self, row_R: Tensor) -> Vectors:
        n = self.num_sub_experts
        i_R, j_R = row_R // n, row_R % n
        v11, v12, v21, v22 = (_columns(v.weight, n) for v in (self.v11, self.v12, self.v21, self.v22))
        u1, u2 = (_rows(u.weight, n) for u in (self.u1, self.u2))
        halves = [torch.cat([i_IFO[i_R], j_JFO[j_R]], dim=-1) for i_IFO, j_JFO in ((v11, v21), (v12, v22))]
        return Vectors(input_RMD=torch.cat([u1[i_R], u2[j_R]], dim=1), output_RMD=torch.cat(halves, dim=1))


def _rows(parameter: Tensor, n: int) -> Tensor:
    """(n * M, ...) to (n, M, ...)."""
    return parameter.unflatten(0, (n, -1))


def _columns(weight_OX: Tensor, n: int) -> Tensor:
    """A linear map's (O, n * M) weight to (n, M, O): each hidden unit's output vector."""
    return weight_OX.T.unflatten(0, (n, -1))


def _turned(v_IMO: Tensor, bias_IO: Tensor) -> Tensor:
    """(I, O, M + 1) maps whose outputs are as long as those of v and the bias, in as many dimensions as they span."""
    map_IOM = torch.cat([v_IMO, bias_IO[:, None]], dim=1).transpose(1, 2)
    return torch.linalg.qr(map_IOM, mode="r").R


def _norms(hidden_PM: Tensor, row_P: Tensor, map_IOM: Tensor) -> Tensor:
    """(P) lengths of what these rows of the maps make of hidden units, and of 1 for the bias."""
    order_P, row_R, start_R1 = pairs_by_row(row_P)
    input_PM = F.pad(hidden_PM[order_P], (0, 1), value=1.0)
    parts = zip(row_R.tolist(), input_PM.split(start_R1.diff().tolist()), strict=True)
    norm_P = torch.cat([(some_XM @ map_IOM[row].T).norm(dim=1) for row, some_XM in parts] or [hidden_PM.new_empty(0)])
    return torch.empty_like(norm_P).index_copy_(0, order_P, norm_P)


def _pairs(
    routing: MonetRouting,
    pre: Callable[[Tensor, Tensor, Tensor], Tensor],
    norms: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Pairs:
    """Of the composed experts i * n + j whose gates, summed over heads, are above 0.

    `pre` gives the (P, M) pre-activations of tokens, i and j, and `norms` the (P) lengths of outputs of those.
    """
    token_P, i_P, j_P, gate_P = (torch.cat(parts) for parts in zip(*_gates(routing), strict=True))
    pre_PM = pre(token_P, i_P, j_P)
    norm_P = gate_P * norms(pre_PM, i_P, j_P)
    num_columns = routing.gate2_NHJ.shape[2]
    return Pairs(token_P=token_P, expert_P=i_P * num_columns + j_P, gate_P=gate_P, pre_PM=pre_PM, norm_P=norm_P)


def _gates(routing: MonetRouting) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(P) token, i, j and gate, of a few tokens at a time: n * n gates a token are many."""
    first, axes = 0, (routing.gate1_NHI, routing.gate2_NHJ)
    tokens = max(1, GATES_A_PIECE // (axes[0].shape[2] * axes[1].shape[2]))
    for gate1_NHI, gate2_NHJ in zip(*(gate_NHI.split(tokens) for gate_NHI in axes), strict=True):
        gate_NIJ = torch.einsum("nhi,nhj->nij", gate1_NHI, gate2_NHJ)
        cells, columns = gate_NIJ[0].numel(), gate_NIJ.shape[2]
        token_P, cell_P = reached(gate_NIJ.flatten(1) != 0)
        gate_P = gate_NIJ.flatten()[token_P * cells + cell_P]
        yield token_P + first, cell_P // columns, cell_P % columns, gate_P
        first += len(gate1_NHI)


def _chosen_pairs(routing: MonetRouting, chosen: Chosen) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(P) token, i, j and gate of those chosen pairs whose gates, summed over heads, are above 0."""
    n = routing.gate2_NHJ.shape[2]
    i_X, j_X, first, found = chosen.expert_X // n, chosen.expert_X % n, 0, list[tuple[Tensor, ...]]()
    tokens = max(1, GATES_A_PIECE // max(1, len(i_X) * routing.gate1_NHI.shape[1]))
    axes = routing.gate1_NHI, routing.gate2_NHJ
    for gate1_NHI, gate2_NHJ in zip(*(gate_NHI.split(tokens) for gate_NHI in axes), strict=True):
        gate_NX = (gate1_NHI[:, :, i_X] * gate2_NHJ[:, :, j_X]).sum(1)
        token_P, at_P = reached(gate_NX.detach() != 0)
        found.append((token_P + first, i_X[at_P], j_X[at_P], gate_NX[token_P, at_P]))
        first += len(gate1_NHI)
    token_Q, i_Q, j_Q = chosen.token_Q, chosen.expert_Q // n, chosen.expert_Q % n
    gate_Q = (axes[0][token_Q, :, i_Q] * axes[1][token_Q, :, j_Q]).sum(1)
    fires_Q = gate_Q != 0
    found.append((token_Q[fires_Q], i_Q[fires_Q], j_Q[fires_Q], gate_Q[fires_Q]))
    token_P, i_P, j_P, gate_P = (torch.cat(parts) for parts in zip(*found, strict=True))
    return token_P, i_P, j_P, gate_P


def _mapped(in_PX: Tensor, row_P: Tensor, map_IOX: Tensor, bias_IO: Tensor) -> Tensor:
    """(P, O) what the linear maps of these numbers make of each row."""
    order_P, row_R, start_R1 = pairs_by_row(row_P)
    parts = zip(row_R.tolist(), in_PX[order_P].split(start_R1.diff().tolist()), strict=True)
    out_PO = [F.linear(some_XX, map_IOX[row], bias_IO[row]) for row, some_XX in parts]
    return torch.cat(out_PO or [in_PX.new_empty(0, map_IOX.shape[1])])[torch.argsort(order_P)]


def _summed(token_P: Tensor, gate_P: Tensor, out_PD: Tensor, num_tokens: int) -> Tensor:
    """(N, D) each token's sum of gate times output; in the type of the outputs, which autocast chooses."""
    added_ND = out_PD.new_zeros(num_tokens, out_PD.shape[1])
    return added_ND.index_add(0, token_P, gate_P[:, None].type_as(out_PD) * out_PD)


def _lecun(*linears: nn.Linear) -> None:
    for linear in linears:
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)


def _use(visit: Visit) -> Use:
    """Of the sub-experts of every axis and head, once for the blocks that share a router."""
    if visit.block.router is None:
        return Use()
    axes = visit.routing.gate1_NHI, visit.routing.gate2_NHJ
    return Use(gate_sums=[gate_NHI[:, head].sum(0).cpu() for gate_NHI in axes for head in range(gate_NHI.shape[1])])


def _cells(n: int) -> Tensor:
    """(n * n, 2) the sub-experts of each expert."""
    return torch.cartesian_prod(torch.arange(n), torch.arange(n))


def _settle(spec: MonetSpec, router: nn.Module, x_ND: Tensor, share: float) -> None:
    """How many pass is Monet's own: those above a share of normal logits."""
    monet = wanted(router, MonetRouter, "a router")
    for linear, norm in ((monet.w1, monet.norm1), (monet.w2, monet.norm2)):
        fit_norm(norm, linear(x_ND).unflatten(-1, (monet.num_heads, -1)))


MONET = LayerKind(
    spec=MonetSpec,
    artifact_kinds=("monet",),
    router=lambda spec, d_model, layer: None if layer % spec.router_group else MonetRouter(spec, d_model),
    experts=lambda spec, d_model, layer: {"horizontal": MoHDE, "vertical": MoVDE}[spec.decomposition](spec, d_model),
    use=_use,
    settle=_settle,
    cells=lambda experts: _cells(experts.num_sub_experts),
    vectors=lambda experts, row_R: experts.vectors(row_R),
)
