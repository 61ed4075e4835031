"""The one transformer: RoPE, RMSNorm, and the attention that its shape names; its expert layer is an argument."""

# B sequences, T tokens a sequence, N = B * T tokens, D model width

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.attention import AttentionSpec, SoftmaxAttentionSpec, rotary

ATTENTIONS: dict[str, type[AttentionSpec]] = {"softmax": SoftmaxAttentionSpec}
"""The spec of each kind of attention."""


def _of_its_kind(attention: object) -> object:
    """The spec that a mapping is of, by its kind."""
    if not isinstance(attention, Mapping):
        return attention
    kind = attention.get("kind")
    if kind not in ATTENTIONS:
        raise ValueError(f"unknown kind of attention {kind!r}; known are: {', '.join(ATTENTIONS)}")
    return ATTENTIONS[kind].model_validate(attention)


class TransformerShape(BaseModel):
    """Shape of everything but the expert layers and the vocabulary, which comes from the corpus."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_model: int = Field(default=128, ge=4, le=2**15, description="Width of the residual stream.")
    num_layers: int = Field(default=4, ge=1, le=256, description="Transformer blocks.")
    num_heads: int = Field(default=4, ge=1, le=256, description="Query heads of the attention.")
    num_kv_heads: int = Field(default=4, ge=1, le=256, description="Key-value heads, a divisor of the query heads.")
    rope_theta: float = Field(default=10_000.0, gt=1, le=1e12, description="Base of the rotary position embedding.")
    norm_eps: float = Field(default=1e-6, gt=0, lt=1, description="Added to the mean square in RMSNorm.")
    attention: Annotated[SerializeAsAny[AttentionSpec], BeforeValidator(_of_its_kind)] = Field(
        default=SoftmaxAttentionSpec(),
        description="What mixes the tokens.",
        # Recipes and specs without it are as old as the store: they mean the default and keep their ids.
        exclude_if=lambda attention: attention == SoftmaxAttentionSpec(),
    )

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


class Block(nn.Module):
    def __init__(self, spec: TransformerSpec, experts: ExpertLayers, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.d_model, spec.norm_eps)
        self.self_attn = spec.attention.layer(
            d_model=spec.d_model, num_heads=spec.num_heads, num_kv_heads=spec.num_kv_heads
        )
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
    """Tokens to next-token logits."""

    def __init__(self, spec: TransformerSpec, experts: ExpertLayers) -> None:
        super().__init__()
        self.shape = spec
        self.model = Backbone(spec, experts)
        self.lm_head = nn.Linear(spec.d_model, spec.vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)
        for block in self.blocks():
            block.self_attn.initialise(self.shape.num_layers)
        nn.init.normal_(self.lm_head.weight, std=self.shape.d_model**-0.5)

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
