"""An attention from outside: softmax plus one, by which a head may add nothing to a token (a sink for each head)."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.models.attention import AttentionLayer, AttentionSpec, Turn, rotate

KIND = "softmax-plus-one"


class PlusOneSpec(AttentionSpec, frozen=True):
    """exp(score) over the sum of exp of all earlier scores plus a constant."""

    kind: Literal["softmax-plus-one"] = Field(default=KIND, description="Which attention.")
    plus: float = Field(default=1.0, gt=0, description="The constant, which was one.")

    def layer(self, *, d_model: int, num_heads: int, num_kv_heads: int) -> "PlusOne":
        return PlusOne(self.plus, d_model, num_heads, num_kv_heads)


class PlusOne(AttentionLayer):
    def __init__(self, plus: float, d_model: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.plus, self.head_width, self.repeats = plus, d_model // num_heads, num_heads // num_kv_heads
        self.qkv = nn.Linear(d_model, d_model + 2 * self.head_width * num_kv_heads, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.scale_H11 = nn.Parameter(torch.empty(num_heads, 1, 1))

    def initialise(self, num_layers: int) -> None:
        nn.init.normal_(self.qkv.weight, std=self.qkv.in_features**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * num_layers * self.out.in_features) ** -0.5)
        nn.init.ones_(self.scale_H11)

    def forward(self, x_BTD: Tensor, turn: Turn) -> Tensor:
        heads = self.qkv(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        queries = len(self.scale_H11)
        q, k, v = heads.split([queries, queries // self.repeats, queries // self.repeats], dim=1)
        k, v = (rotate(k, turn).repeat_interleave(self.repeats, 1), v.repeat_interleave(self.repeats, 1))
        score_BHTT = rotate(q, turn) @ k.mT * self.scale_H11 / math.sqrt(self.head_width)
        later_TT = torch.ones(score_BHTT.shape[-2:], dtype=torch.bool).triu(1)
        score_BHTT = score_BHTT.masked_fill(later_TT, -torch.inf)
        sink_BHT1 = torch.full_like(score_BHTT[..., :1], math.log(self.plus))
        share_BHTT = torch.softmax(torch.cat([sink_BHT1, score_BHTT], dim=-1), dim=-1)[..., 1:]
        return self.out((share_BHTT @ v).transpose(1, 2).flatten(2))
