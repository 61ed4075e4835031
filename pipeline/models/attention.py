"""Attention: its spec, which a transformer's shape holds, and the layer that is the default.

Names and numerics of the default are those of Llama as Monet's public release uses them.
"""

# B sequences, T tokens a sequence, D model width, H query heads, G key-value heads, K head width, P positions in
# question, S states that one is looked at in

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

Turn = tuple[Tensor, Tensor]
"""(T, K) cosines and sines of the positions."""


class AttentionLayer(nn.Module, ABC):
    """What a block asks of its attention."""

    @abstractmethod
    def forward(self, x_BTD: Tensor, turn: Turn) -> Tensor:
        """(B, T, D) what it adds to the residual stream. No position sees a later one."""

    def memory(self, x_BTD: Tensor, turn: Turn) -> Any:
        """What `at` needs of these sequences."""
        return x_BTD, turn

    def at(self, memory: Any, row_P: Tensor, position_P: Tensor, x_PSD: Tensor) -> Tensor:
        """(P, S, D) what `forward` adds at each position of its row if the state there is another, S of them in turn.
        What stands before it is as it was in `memory`.

        As it stands, by a forward pass over whole rows for each; an attention that keeps keys does better.
        """
        x_BTD, turn = memory
        added_PSD = torch.empty_like(x_PSD)
        place_P = torch.arange(len(row_P), device=x_PSD.device)
        for state in range(x_PSD.shape[1]):
            x_PTD = x_BTD[row_P].index_put((place_P, position_P), x_PSD[:, state])
            added_PSD[:, state] = self.forward(x_PTD, turn)[place_P, position_P]
        return added_PSD

    @abstractmethod
    def initialise(self, num_layers: int) -> None:
        """Draws the parameters, for a model of so many blocks."""


class AttentionSpec(BaseModel, ABC, frozen=True, extra="forbid"):
    """Shape of an attention beside the widths and heads that every one has."""

    kind: str = Field(description="Which attention it is, as `ATTENTIONS` in models/transformer.py has it.")

    @abstractmethod
    def layer(self, *, d_model: int, num_heads: int, num_kv_heads: int) -> AttentionLayer:
        """A layer of it."""


class SoftmaxAttentionSpec(AttentionSpec, frozen=True):
    """Softmax over all earlier tokens."""

    kind: Literal["softmax"] = Field(default="softmax", description="Which attention; another may have other fields.")

    def layer(self, *, d_model: int, num_heads: int, num_kv_heads: int) -> "SoftmaxAttention":
        return SoftmaxAttention(d_model, num_heads, num_kv_heads)


class SoftmaxAttention(AttentionLayer):
    """Grouped-query attention with rotary positions."""

    def __init__(self, d_model: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.head_width = d_model // num_heads
        kv_width = self.head_width * num_kv_heads
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(d_model, d_model, bias=False)
        self.grouped = num_kv_heads != num_heads

    def initialise(self, num_layers: int) -> None:
        """N(0, 1 / width), the residual projection smaller with depth."""
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        # GPT-2's rule: each block adds to the stream twice, so its variance must not grow with depth.
        self.o_proj.weight.data.mul_((2 * num_layers) ** -0.5)

    def forward(self, x_BTD: Tensor, turn: Turn) -> Tensor:
        q, k, v = (
            proj(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHTK = F.scaled_dot_product_attention(
            rotate(q, turn), rotate(k, turn), v, is_causal=True, enable_gqa=self.grouped
        )
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))

    def memory(self, x_BTD: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Turn]:
        """Keys, turned, and values."""
        k_BGTK, v_BGTK = (
            proj(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for proj in (self.k_proj, self.v_proj)
        )
        return rotate(k_BGTK, turn), v_BGTK, turn

    def at(self, memory: tuple[Tensor, Tensor, Turn], row_P: Tensor, position_P: Tensor, x_PSD: Tensor) -> Tensor:
        k_BGTK, v_BGTK, turn = memory
        # Query heads beside each other share a key-value head: (P, G, H / G * S, K) by (P, G, T, K).
        groups, states = k_BGTK.shape[1], x_PSD.shape[1]
        turn_P = tuple(of_TK[position_P][:, None, None] for of_TK in turn)
        q_PHSK, own_k_PGSK, own_v_PGSK = (
            proj(x_PSD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_PHSK, own_k_PGSK = (rotate(of, (turn_P[0], turn_P[1])) for of in (q_PHSK, own_k_PGSK))
        q_PGSK = q_PHSK.unflatten(1, (groups, -1)).flatten(2, 3) * self.head_width**-0.5
        score_PGST = q_PGSK @ k_BGTK[row_P].mT
        hidden_PT = torch.arange(score_PGST.shape[-1], device=x_PSD.device) >= position_P[:, None]
        score_PGST = score_PGST.masked_fill(hidden_PT[:, None, None], -torch.inf)
        own_k_PGSK, own_v_PGSK = (
            of[:, :, None].expand(-1, -1, q_PGSK.shape[2] // states, -1, -1).flatten(2, 3)
            for of in (own_k_PGSK, own_v_PGSK)
        )
        own_PGS1 = (q_PGSK * own_k_PGSK).sum(-1, keepdim=True)
        share_PGST = torch.softmax(torch.cat([score_PGST, own_PGS1], dim=-1), dim=-1)
        mixed_PGSK = share_PGST[..., :-1] @ v_BGTK[row_P] + share_PGST[..., -1:] * own_v_PGSK
        mixed_PHSK = mixed_PGSK.unflatten(2, (-1, states)).flatten(1, 2)
        return self.o_proj(mixed_PHSK.transpose(1, 2).flatten(2))


def rotary(length: int, head_width: int, theta: float, device: torch.device) -> Turn:
    """(T, K) cosines and sines; the two halves of a head turn together (Llama's convention)."""
    frequency_F = theta ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle_TF = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency_F
    angle_TK = torch.cat([angle_TF, angle_TF], dim=-1)
    return angle_TK.cos(), angle_TK.sin()


def rotate(x_BHTK: Tensor, turn: Turn) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = (t.to(x_BHTK.dtype) for t in turn)
    return x_BHTK * cos + torch.cat([-second, first], dim=-1) * sin
