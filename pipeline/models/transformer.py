"""The one transformer: RoPE, RMSNorm, grouped-query attention; its expert layer is an argument.

Names and numerics of the attention part are those of Llama as Monet's public release uses them.
"""

# B sequences, T tokens a sequence, N = B * T tokens, D model width, H query heads, G key-value heads, K head width

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F


class TransformerShape(BaseModel):
    """Shape of everything but the expert layers and the vocabulary, which comes from the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(default=128, ge=4, le=2**15, description="Width of the residual stream.")
    num_layers: int = Field(default=4, ge=1, le=256, description="Transformer blocks.")
    num_heads: int = Field(default=4, ge=1, le=256, description="Query heads of the attention.")
    num_kv_heads: int = Field(default=4, ge=1, le=256, description="Key-value heads, a divisor of the query heads.")
    rope_theta: float = Field(default=10_000.0, gt=1, le=1e12, description="Base of the rotary position embedding.")
    norm_eps: float = Field(default=1e-6, gt=0, lt=1, description="Added to the mean square in RMSNorm.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "TransformerShape":
        if self.d_model % (2 * self.num_heads):
            raise ValueError(
                f"d_model={self.d_model} is not a multiple of 2 * num_heads={2 * self.num_heads}; change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; change one of them"
            )
        return self


class TransformerSpec(TransformerShape):
    """Shape of everything but the expert layers."""

    vocab_size: int = Field(ge=2, le=2**16, description="Tokens in the vocabulary.")


class ExpertLayers(Protocol):
    """What a transformer asks of an expert layer's spec: the modules of block `layer`.

    A router takes (x_ND, tokens_BT) and returns a routing; `experts` take (x_ND, routing) and return y_ND. A block
    without a router uses the routing of the nearest block below that has one.
    """

    def router(self, d_model: int, layer: int) -> nn.Module | None: ...

    def experts(self, d_model: int, layer: int) -> nn.Module: ...


class RMSNorm(nn.Module):
    def __init__(self, d_model: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotary(length: int, head_width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """(T, K) cosines and sines; the two halves of a head turn together (Llama's convention)."""
    frequency_F = theta ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle_TF = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency_F
    angle_TK = torch.cat([angle_TF, angle_TF], dim=-1)
    return angle_TK.cos(), angle_TK.sin()


def rotate(x_BHTK: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    cos, sin = (t.to(x_BHTK.dtype) for t in turn)
    return x_BHTK * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, spec: TransformerSpec) -> None:
        super().__init__()
        self.head_width = spec.d_model // spec.num_heads
        kv_width = self.head_width * spec.num_kv_heads
        self.q_proj = nn.Linear(spec.d_model, spec.d_model, bias=False)
        self.k_proj = nn.Linear(spec.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(spec.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(spec.d_model, spec.d_model, bias=False)
        self.grouped = spec.num_kv_heads != spec.num_heads

    def forward(self, x_BTD: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            proj(x_BTD).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHTK = F.scaled_dot_product_attention(
            rotate(q, turn), rotate(k, turn), v, is_causal=True, enable_gqa=self.grouped
        )
        return self.o_proj(mixed_BHTK.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, spec: TransformerSpec, experts: ExpertLayers, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.d_model, spec.norm_eps)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.d_model, spec.norm_eps)
        self.router = experts.router(spec.d_model, layer)
        self.moe = experts.experts(spec.d_model, layer)


@dataclass(slots=True)
class Trace:
    """What a forward pass went through, block by block. Routings are shared where blocks share a router."""

    logits_BTV: Tensor
    expert_inputs: list[Tensor] = field(default_factory=list)
    """(N, D) a block: the normalised state that router and experts read."""
    routings: list[Any] = field(default_factory=list)
    expert_outputs: list[Tensor] = field(default_factory=list)
    """(N, D) a block: what the experts add to the residual stream."""


class Backbone(nn.Module):
    def __init__(self, spec: TransformerSpec, experts: ExpertLayers) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.d_model)
        self.layers = nn.ModuleList(Block(spec, experts, layer) for layer in range(spec.num_layers))
        self.norm = RMSNorm(spec.d_model, spec.norm_eps)


class Transformer(nn.Module):
    """Tokens to next-token logits. Parameters start at N(0, 0.02), residual projections smaller with depth."""

    def __init__(self, spec: TransformerSpec, experts: ExpertLayers) -> None:
        super().__init__()
        self.shape = spec
        self.model = Backbone(spec, experts)
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if ".self_attn." in name or "embed_tokens" in name or "lm_head" in name:
                width = parameter.shape[1]
                nn.init.normal_(parameter, std=0.02 if "embed" in name else width**-0.5)
            if name.endswith("o_proj.weight"):
                # GPT-2's rule: each block adds to the stream twice, so its variance must not grow with depth.
                parameter.data.mul_((2 * self.shape.num_layers) ** -0.5)

    def blocks(self) -> list[Block]:
        return [block for block in self.model.layers if isinstance(block, Block)]

    def trace(self, tokens_BT: Tensor) -> Trace:
        """The forward pass with everything that losses on routings and layers need."""
        batch, length = tokens_BT.shape
        x_BTD = self.model.embed_tokens(tokens_BT)
        turn = rotary(length, self.shape.d_model // self.shape.num_heads, self.shape.rope_theta, tokens_BT.device)
        trace = Trace(logits_BTV=x_BTD)
        routing = None
        for block in self.blocks():
            x_BTD = x_BTD + block.self_attn(block.input_layernorm(x_BTD), turn)
            h_ND = block.post_attention_layernorm(x_BTD).flatten(0, 1)
            if block.router is not None:
                routing = block.router(h_ND, tokens_BT)
            y_ND = block.moe(h_ND, routing)
            x_BTD = x_BTD + y_ND.unflatten(0, (batch, length))
            trace.expert_inputs.append(h_ND)
            trace.routings.append(routing)
            trace.expert_outputs.append(y_ND)
        trace.logits_BTV = self.lm_head(self.model.norm(x_BTD))
        return trace

    def expert_outputs(self, inputs: list[Tensor], tokens_BT: Tensor) -> list[Tensor]:
        """(N, D) a block: what routers and experts alone make of these (N, D) inputs, one a block."""
        outputs, routing = [], None
        for block, x_ND in zip(self.blocks(), inputs, strict=True):
            if block.router is not None:
                routing = block.router(x_ND, tokens_BT)
            outputs.append(block.moe(x_ND, routing))
        return outputs

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) logits of (B, T) int64 tokens."""
        return self.trace(tokens_BT).logits_BTV
