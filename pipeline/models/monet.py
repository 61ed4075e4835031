"""Monet: mixture of monosemantic experts, horizontal and vertical decomposition (arXiv 2412.04139).

Parameter names and numerics are those of the public release, so that its checkpoints open. Where its code and the
paper differ, the code is followed: both routers read the whole input, and the softmax is over raw logits.
"""

# N tokens, D model width, H router heads, I and J the n sub-experts of an axis, M hidden units of an expert

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from kernels.activations import activation
from kernels.monet_mix import monet_mix
from pipeline.models.axis_threshold import axis_deviations, passing_logits
from pipeline.models.number_types import FullStatistics


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
            raise ValueError(
                f"active_sub_experts={self.active_sub_experts} must be below num_sub_experts={self.num_sub_experts}"
            )
        if self.decomposition == "vertical" and self.d_expert % 2:
            raise ValueError(
                f"d_expert={self.d_expert} is odd; the vertical decomposition halves it, use an even number"
            )
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


class MoHDE(nn.Module):
    """Horizontal: expert (i, j) is V_j act(U_i x + b_i) + b_j (Monet eq. 6 to 12)."""

    def __init__(self, spec: MonetSpec, d_model: int) -> None:
        super().__init__()
        self.num_sub_experts = spec.num_sub_experts
        self.act = activation("relu2").f
        width = spec.num_sub_experts * spec.d_expert
        self.u = nn.Linear(d_model, width)
        self.v = nn.Linear(width, d_model, bias=False)
        self.b = nn.Parameter(torch.zeros(spec.num_sub_experts, d_model))
        _lecun(self)

    def forward(self, x_ND: Tensor, routing: MonetRouting) -> Tensor:
        hidden_NIM = self.act(self.u(x_ND).unflatten(-1, (self.num_sub_experts, -1)))
        g1, g2 = routing.gate1_NHI.type_as(hidden_NIM), routing.gate2_NHJ.type_as(hidden_NIM)
        return self.v(monet_mix(hidden_NIM, g1, g2).flatten(1)) + g2.sum(1) @ self.b


class MoVDE(nn.Module):
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
        _lecun(self)

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


def _lecun(module: nn.Module) -> None:
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
