"""The one transformer: RoPE, RMSNorm, and the attention that its shape names; its expert layer is an argument."""

# B sequences, T tokens a sequence, N = B * T tokens, D model width

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.errors import Mistake
from pipeline.models.attention import AttentionSpec, SoftmaxAttentionSpec, Turn, rotary
from pipeline.models.contract import ExpertLayer, Pairs, leaves, wanted

L = TypeVar("L", bound=ExpertLayer)
R = TypeVar("R", bound=nn.Module)

ATTENTIONS: dict[str, type[AttentionSpec]] = {"softmax": SoftmaxAttentionSpec}
"""The spec of each kind of attention."""


def _of_its_kind(attention: object) -> object:
    """The spec that a mapping is of, by its kind."""
    if not isinstance(attention, Mapping):
        return attention
    kind = attention.get("kind")
    if kind not in ATTENTIONS:
        raise Mistake(f"unknown kind of attention {kind!r}; known are: {', '.join(ATTENTIONS)}")
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
            raise Mistake(
                f"d_model={self.d_model} is not a multiple of 2 * num_heads={2 * self.num_heads}; change one of them"
            )
        if self.num_heads % self.num_kv_heads:
            raise Mistake(
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

    def experts(self, d_model: int, layer: int) -> ExpertLayer: ...


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
        self.moe: nn.Module = experts.experts(spec.d_model, layer)

    @property
    def experts(self) -> ExpertLayer:
        """Its expert layer. ValueError while something that is none stands in its place."""
        return wanted(self.moe, ExpertLayer, "what is in the place of a block's experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Visit:
    """One block on a forward pass."""

    block: Block
    attended_BTD: Tensor
    """The residual stream before the experts, the attention's part added."""
    x_ND: Tensor
    """The normalised state that router and experts read."""
    routing: Any
    """Of its router, or of the nearest below that has one: the same object in all blocks that share it."""
    y_ND: Tensor
    """What the experts add to the residual stream."""
    stream_BTD: Tensor
    """The residual stream after the block."""

    @property
    def experts(self) -> ExpertLayer:
        return self.block.experts

    def pairs(self) -> Pairs:
        return self.experts.pairs(self.x_ND, self.routing)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What a forward pass went through, block by block. Routings are shared where blocks share a router."""

    logits_BTV: Tensor
    expert_inputs: list[Tensor]
    """(N, D) a block: the normalised state that router and experts read."""
    routings: list[Any]
    expert_outputs: list[Tensor]
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
        return list(cast(Iterable[Block], self.model.layers))

    def expert_layers(self) -> list[ExpertLayer]:
        """From the lowest block on; of a layer that holds others, those."""
        return [layer for block in self.blocks() for layer in leaves(block.moe)]

    def expert_layers_of(self, kind: type[L]) -> list[L]:
        """The same. ValueError where one is of another kind."""
        return [wanted(layer, kind, "an expert layer") for layer in self.expert_layers()]

    def routers_of(self, kind: type[R]) -> dict[int, R]:
        """By their blocks, of those that have one. ValueError where one is of another kind."""
        routers = {layer: block.router for layer, block in enumerate(self.blocks()) if block.router is not None}
        return {layer: wanted(router, kind, "a router") for layer, router in routers.items()}

    def parameters_of(self, part: Literal["experts", "routers"]) -> list[nn.Parameter]:
        """Those of the expert layers; or what decides which of them a token reaches, wherever it lies in a block."""
        experts = [parameter for layer in self.expert_layers() for parameter in layer.parameters()]
        if part == "experts":
            return experts
        own = {id(parameter) for parameter in experts}
        beside = [module for block in self.blocks() for module in (block.router, block.moe) if module is not None]
        return [parameter for module in beside for parameter in module.parameters() if id(parameter) not in own]

    def table_parameters(self) -> list[nn.Parameter]:
        """Those that are expert tables."""
        tables = [table for layer in self.expert_layers() for table in layer.tables().values()]
        return [parameter for table in tables for parameter in table.parameters()]

    def backbone_state(self) -> dict[str, Tensor]:
        """The state of everything but routers and experts."""
        beside = [module for block in self.blocks() for module in (block.router, block.moe) if module is not None]
        own = {id(tensor) for module in beside for tensor in module.state_dict(keep_vars=True).values()}
        state = self.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in own}

    def take_state(self, other: "Transformer") -> None:
        """Copies every tensor that has the same name and shape in both."""
        own = self.state_dict()
        both = {name: t for name, t in other.state_dict().items() if name in own and t.shape == own[name].shape}
        self.load_state_dict(both, strict=False)

    def turn(self, tokens_BT: Tensor) -> Turn:
        """What attention is told of positions."""
        head_width = self.shape.d_model // self.shape.num_heads
        return rotary(tokens_BT.shape[1], head_width, self.shape.rope_theta, tokens_BT.device)

    def walk(self, tokens_BT: Tensor) -> Iterator[Visit]:
        """The forward pass block by block; what a block went through is kept by whoever keeps the visit."""
        stream_BTD, turn, routing = self.model.embed_tokens(tokens_BT), self.turn(tokens_BT), None
        for block in self.blocks():
            attended_BTD = stream_BTD + block.self_attn(block.input_layernorm(stream_BTD), turn)
            x_ND = block.post_attention_layernorm(attended_BTD).flatten(0, 1)
            if block.router is not None:
                routing = block.router(x_ND, tokens_BT)
            y_ND = block.moe(x_ND, routing)
            stream_BTD = attended_BTD + y_ND.unflatten(0, tokens_BT.shape)
            yield Visit(
                block=block, attended_BTD=attended_BTD, x_ND=x_ND, routing=routing, y_ND=y_ND, stream_BTD=stream_BTD
            )

    def logits(self, stream_BTD: Tensor) -> Tensor:
        """(B, T, V) of the residual stream after the last block."""
        return self.lm_head(self.model.norm(stream_BTD))

    def trace(self, tokens_BT: Tensor) -> Trace:
        """The forward pass with everything that losses on routings and layers need."""
        visits = list(self.walk(tokens_BT))
        return Trace(
            logits_BTV=self.logits(visits[-1].stream_BTD),
            expert_inputs=[visit.x_ND for visit in visits],
            routings=[visit.routing for visit in visits],
            expert_outputs=[visit.y_ND for visit in visits],
        )

    def expert_outputs(self, inputs: list[Tensor], tokens_BT: Tensor) -> list[Tensor]:
        """(N, D) a block: what routers and experts alone make of these (N, D) inputs, one a block."""
        outputs, routing = [], None
        for block, x_ND in zip(self.blocks(), inputs, strict=True):
            if block.router is not None:
                routing = block.router(x_ND, tokens_BT)
            outputs.append(block.moe(x_ND, routing))
        return outputs

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T, V) logits of (B, T) int64 tokens. No more than two blocks' states are kept at a time."""
        return self.logits(deque(self.walk(tokens_BT), maxlen=1).pop().stream_BTD)
