"""The dense baseline: one MLP in every block, mandatory beside every claim."""

# N tokens, D model width, P pairs (a token and a hidden unit that is not 0), X units and Q pairs that are chosen

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.activations import activation
from kernels.pairs import reached
from pipeline.models.contract import Chosen, ExpertLayer, Pairs, Table, Vectors, bytes_of
from pipeline.models.registry import LayerKind


class DenseSpec(BaseModel):
    """Shape of the dense MLP."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: Literal["dense"] = "dense"
    d_hidden: int = Field(default=512, ge=1, le=2**24, description="Hidden units of the MLP.")
    activation: Literal["relu2", "gelu", "silu", "relu"] = Field(
        default="relu2", description="Activation of a hidden unit."
    )

    @property
    def kind(self) -> str:
        return "dense"


class DenseMLP(ExpertLayer):
    """Its experts are its hidden units, which every token reaches; those whose activation is 0 add nothing."""

    def __init__(self, spec: DenseSpec, d_model: int) -> None:
        super().__init__()
        self.act = activation(spec.activation).f
        self.up = nn.Linear(d_model, spec.d_hidden)
        self.down = nn.Linear(spec.d_hidden, d_model)
        for linear in (self.up, self.down):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    @property
    def num_experts(self) -> int:
        return self.up.out_features

    def forward(self, x_ND: Tensor, routing: None) -> Tensor:
        return self.down(self.act(self.up(x_ND)))

    @torch.no_grad()
    def pairs(self, x_ND: Tensor, routing: None) -> Pairs:
        pre_NE = self.up(x_ND)
        hidden_NE = self.act(pre_NE)
        token_P, expert_P = reached(hidden_NE != 0)
        flat_P = token_P * self.num_experts + expert_P
        hidden_P = hidden_NE.flatten()[flat_P]
        return Pairs(
            token_P=token_P,
            expert_P=expert_P,
            gate_P=torch.ones_like(hidden_P),
            pre_PM=pre_NE.flatten()[flat_P][:, None],
            norm_P=hidden_P.abs() * self.down.weight.norm(dim=0)[expert_P],
        )

    def added(self, x_ND: Tensor, routing: None, chosen: Chosen) -> Tensor:
        weight_ED, bias_E, down_DE = self.up.weight, self.up.bias, self.down.weight
        expert_X, token_Q, expert_Q = chosen.expert_X, chosen.token_Q, chosen.expert_Q
        hidden_NX = self.act(F.linear(x_ND, weight_ED[expert_X], bias_E[expert_X]))
        added_ND = F.linear(hidden_NX, down_DE[:, expert_X])
        if not len(token_Q):
            return added_ND
        hidden_Q = self.act((x_ND[token_Q] * weight_ED[expert_Q]).sum(1) + bias_E[expert_Q])
        return added_ND.index_add(0, token_Q, (hidden_Q[:, None] * down_DE.T[expert_Q]).type_as(added_ND))

    def tables(self) -> Mapping[str, Table]:
        return {}

    def state_bytes(self) -> int:
        return bytes_of(self) - self.down.bias.nbytes

    def check(self, path: str) -> None:
        """All of it are single numbers."""


DENSE = LayerKind(
    spec=DenseSpec,
    artifact_kinds=("dense",),
    router=lambda spec, d_model, layer: None,
    experts=lambda spec, d_model, layer: DenseMLP(spec, d_model),
    vectors=lambda experts, row_R: Vectors(
        input_RMD=experts.up.weight[row_R, None], output_RMD=experts.down.weight.T[row_R, None]
    ),
)
