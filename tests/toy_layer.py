"""An expert layer from outside of the house, in one file: neurons of which every token takes the best K."""

# N tokens, D model width, E experts, K experts of a token, P pairs (a token and an expert)

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipeline.models.contract import ExpertLayer, Pairs, Table, bytes_of
from pipeline.models.language_model import register_expert_layer
from pipeline.models.registry import LayerKind
from pipeline.models.tables.parameter import ParameterTable

Routing = tuple[Tensor, Tensor]
"""(N, K) experts and gates."""


class ToySpec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["toy"] = "toy"
    num_experts: int = Field(default=9, ge=1, description="Experts a block.")
    active: int = Field(default=2, ge=1, description="Experts a token.")

    @property
    def kind(self) -> str:
        return "toy"


class ToyRouter(nn.Module):
    def __init__(self, spec: ToySpec, d_model: int) -> None:
        super().__init__()
        self.score, self.active = nn.Linear(d_model, spec.num_experts), spec.active

    def forward(self, x_ND: Tensor, tokens_BT: Tensor) -> Routing:
        best = self.score(x_ND).topk(self.active)
        return best.indices, torch.softmax(best.values, dim=-1)


class ToyExperts(ExpertLayer):
    """The sum over a token's experts of gate * tanh(u . x) * v."""

    def __init__(self, spec: ToySpec, d_model: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)
        self.v = nn.Parameter(torch.randn(spec.num_experts, d_model) * d_model**-0.5)

    @property
    def num_experts(self) -> int:
        return len(self.u)

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        expert_NK, gate_NK = routing
        pre_NK = torch.einsum("nd,nkd->nk", x_ND, self.u[expert_NK])
        return torch.einsum("nk,nkd->nd", gate_NK * torch.tanh(pre_NK), self.v[expert_NK])

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: Routing) -> Pairs:
        expert_P, gate_P = (of_NK.flatten() for of_NK in routing)
        token_P = torch.arange(len(x_ND)).repeat_interleave(routing[0].shape[1])
        pre_P = (x_ND[token_P] * self.u[expert_P]).sum(1)
        norm_P = gate_P * torch.tanh(pre_P).abs() * self.v[expert_P].norm(dim=1)
        return Pairs(token_P=token_P, expert_P=expert_P, gate_P=gate_P, pre_PM=pre_P[:, None], norm_P=norm_P)

    def tables(self) -> Mapping[str, Table]:
        return {"u": ParameterTable(self.u), "v": ParameterTable(self.v)}

    def state_bytes(self) -> int:
        return bytes_of(self)

    def check(self, path: str) -> None:
        """All of it are single numbers."""


register_expert_layer(
    LayerKind(
        spec=ToySpec,
        artifact_kinds=("toy",),
        router=lambda spec, d_model, layer: ToyRouter(spec, d_model),
        experts=lambda spec, d_model, layer: ToyExperts(spec, d_model),
    )
)
