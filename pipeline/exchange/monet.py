"""Monet's public release: its config in the words of our spec, and its tensors into our model, one by one.

The names of the tensors are those of our model. What its config may say and our model cannot is refused by name.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from artifacts.foreign_tensors import DTYPES, Stored, read_stored
from kernels.errors import Mistake
from pipeline.exchange.release import CONFIG, Release
from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.monet import MonetSpec
from pipeline.models.soundness import check_sound
from pipeline.models.trained_length import LONGEST
from pipeline.models.transformer import TransformerSpec
from pipeline.run import steps

S = TypeVar("S", bound=BaseModel)

_Size = Annotated[int, Field(ge=1, le=2**31)]
_DERIVED = ".rotary_emb.inv_freq"
"""Old releases of Llama store it; it follows from rope_theta."""
_COUNTER = ".num_batches_tracked"
"""Of batch norms: no output depends on it, and some writers leave it out."""


class PublicConfig(BaseModel):
    """config.json of a release, with the defaults of its own class; what says nothing about numbers is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    model_type: str = ""
    vocab_size: _Size = 32_000
    hidden_size: _Size = 4096
    num_hidden_layers: _Size = 32
    num_attention_heads: _Size = 32
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    hidden_act: str = "relu2"
    max_position_embeddings: _Size = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    moe_dim: _Size = 8
    moe_heads: _Size = 8
    moe_experts: _Size = 512
    moe_topk: _Size = 32
    moe_groups: _Size = 4
    moe_decompose: Literal["vertical", "horizontal"] = "vertical"

    @property
    def theta(self) -> float:
        """transformers 5 writes it among rope_parameters, older ones beside rope_scaling."""
        return float((self.rope_parameters or {}).get("rope_theta", self.rope_theta))


_TRANSFORMER = {
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
}
_MONET = {
    "num_sub_experts": "moe_experts",
    "d_expert": "moe_dim",
    "num_heads": "moe_heads",
    "active_sub_experts": "moe_topk",
    "router_group": "moe_groups",
    "decomposition": "moe_decompose",
}
"""Our fields and theirs."""


def config_of(release: Release) -> PublicConfig:
    """The release's config. Mistake names what is none of Monet, or what our model cannot say."""
    kind = release.config.get("model_type")
    if kind != "monet":
        raise Mistake(f"{release.folder / CONFIG} has model_type {kind!r}, and 'monet' is what can be imported")
    try:
        config = PublicConfig.model_validate(release.config)
    except ValidationError as error:
        raise Mistake(f"{release.folder / CONFIG}: {_first(error, {})}") from None
    for name, value, instead in _unsayable(config):
        raise Mistake(
            f"{release.folder / CONFIG} has {name}={value!r}, which this model has no words for: {instead}; import a "
            "checkpoint without it"
        )
    return config


def _unsayable(config: PublicConfig) -> Iterator[tuple[str, object, str]]:
    """Name and value of what would be computed otherwise than it says, and what is computed here."""
    rope = config.rope_parameters or {}
    if config.rope_scaling is not None and config.rope_scaling.get("rope_type", "") != "default":
        yield "rope_scaling", config.rope_scaling, "positions turn as rope_theta alone says"
    if rope.get("rope_type", "default") != "default":
        yield "rope_parameters", rope, "positions turn as rope_theta alone says"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "rope_parameters", rope, "the whole width of a head turns"
    if config.attention_bias:
        yield "attention_bias", config.attention_bias, "projections of the attention have no biases"
    if config.head_dim not in (None, config.hidden_size / config.num_attention_heads):
        yield "head_dim", config.head_dim, "a head's width is hidden_size / num_attention_heads"
    if config.tie_word_embeddings:
        yield "tie_word_embeddings", config.tie_word_embeddings, "lm_head has weights of its own"
    if config.moe_topk >= config.moe_experts:
        yield "moe_topk", config.moe_topk, f"fewer than moe_experts={config.moe_experts} pass on average"
    if config.hidden_act != "relu2":
        yield "hidden_act", config.hidden_act, "Monet's experts have relu2"
    if config.vocab_size > 2**16:
        yield "vocab_size", config.vocab_size, "corpora number at most 65536 tokens"
    if config.max_position_embeddings > LONGEST:
        yield "max_position_embeddings", config.max_position_embeddings, f"contexts have at most {LONGEST} tokens"


def spec_of(config: PublicConfig) -> ModelSpec:
    """The same in our words. Mistake names the field of theirs that is out of bounds."""
    transformer = _made(
        TransformerSpec,
        _TRANSFORMER,
        rope_theta=config.theta,
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        norm_eps=config.rms_norm_eps,
    )
    monet = _made(MonetSpec, _MONET, **{ours: getattr(config, theirs) for ours, theirs in _MONET.items()})
    return ModelSpec(transformer=transformer, experts=monet)


def _made(spec: type[S], names: Mapping[str, str], **fields: object) -> S:
    try:
        return spec.model_validate(fields)
    except ValidationError as error:
        raise Mistake(f"{CONFIG}: {_first(error, names)}") from None


def _first(error: ValidationError, names: Mapping[str, str]) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    return f"{names.get(name, name)}: {first['msg']}" if name else first["msg"].removeprefix("Value error, ")


def model_of(spec: ModelSpec, tensors: Mapping[str, Stored]) -> LanguageModel:
    """The model, in evaluation and float32. Each tensor is read once; names and shapes are compared before any is."""
    with torch.device("meta"):  # nothing is drawn, and nothing allocated, that the file's tensors take the place of
        model = LanguageModel(spec).eval()
    wanted = model.state_dict()
    found = {name: stored for name, stored in tensors.items() if not name.endswith(_DERIVED)}
    _check(wanted, found)
    read: dict[str, Tensor] = {}
    for _, (name, meant) in zip(steps("read tensors", len(wanted)), wanted.items(), strict=False):
        missing = torch.zeros((), dtype=meant.dtype)  # of a counter alone: all others are there
        read[name] = read_stored(name, found[name], meant.dtype) if name in found else missing
    model.load_state_dict(read, assign=True)
    check_sound(model)
    return model


def _check(wanted: Mapping[str, Tensor], found: Mapping[str, Stored]) -> None:
    """Mistake unless the files hold the model's tensors, by name and shape, as floats."""
    for name, tensor in wanted.items():
        if name not in found:
            if name.endswith(_COUNTER):
                continue
            raise Mistake(f"{CONFIG} asks for the tensor {name}, which no file holds; copy the checkpoint whole")
        if found[name].shape != tuple(tensor.shape):
            raise Mistake(
                f"{name} is {found[name].shape} in {found[name].file.name}, where {CONFIG} asks for "
                f"{tuple(tensor.shape)}; the two are not of one checkpoint"
            )
        dtype = DTYPES.get(found[name].dtype)
        if dtype is None or dtype.is_floating_point != tensor.dtype.is_floating_point:
            raise Mistake(f"{name} is of {found[name].dtype}, and {tensor.dtype} is what it is read into")
    for name in sorted(found.keys() - wanted.keys()):
        raise Mistake(
            f"{found[name].file.name} holds the tensor {name[:200]}, which {CONFIG} has no place for; the two are not "
            "of one checkpoint"
        )
