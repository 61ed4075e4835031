"""lucidrains' PEER layer (github.com/lucidrains/PEER-pytorch): its state dicts as expert layers of a host model.

What is imported is a layer and no language model, so that it takes the place of a host's expert layers: the host gives
tokens, attention and residual stream, a block's norm is that of its layer where that has one (pre_rmsnorm), and what
its block normalises is what the layer reads where it has none.
"""

# H heads, n sub-keys an axis, Q width of a sub-key, D model width, E experts

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from artifacts.foreign_tensors import Stored, read_stored
from kernels.errors import Mistake
from pipeline.models import LanguageModel, ModelSpec
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.gates import GateName
from pipeline.models.peer.spec import PeerSpec

KEYS, QUERY, NORM = "keys", "to_queries.0.weight", "norm.gamma"
DOWN, UP = "weight_down_embed.weight", "weight_up_embed.weight"
NORM_EPS = 1e-24
"""Of a host whose norms are those of layers: theirs add nothing to the mean square, and 0 / 0 alone is kept from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the layer's constructor was told and its tensors do not say; the defaults are its own."""

    num_experts_per_head: int
    product_key_topk: int
    non_competing_scores: bool
    activation: str


def layers_in(tensors: Mapping[str, Stored]) -> list[dict[str, tuple[str, Stored]]]:
    """By layer, from the lowest number in their names on, each of its tensors with the name that it has in the file."""
    layers: dict[str, dict[str, tuple[str, Stored]]] = {}
    for name, stored in tensors.items():
        own = next((own for own in (KEYS, QUERY, DOWN, UP, NORM) if name == own or name.endswith(f".{own}")), None)
        if own is None:
            raise Mistake(
                f"{name[:200]} is no tensor of a PEER layer; those are {', '.join((KEYS, QUERY, DOWN, UP, NORM))}, "
                "behind one name a layer: save the state dict of the layers alone"
            )
        layers.setdefault(name.removesuffix(own), {})[own] = (name, stored)
    for prefix, layer in layers.items():
        for own in (KEYS, QUERY, DOWN, UP):
            if own not in layer:
                raise Mistake(f"the layer {prefix or '(without a name)'} has no {own}; save its whole state dict")
    return [layers[prefix] for prefix in sorted(layers, key=_in_order)]


def _in_order(prefix: str) -> list[tuple[bool, int, str]]:
    """10 after 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", prefix)]


def spec_of(layer: Mapping[str, tuple[str, Stored]], d_model: int, settings: Settings) -> PeerSpec:
    """The layer in our words. Mistake where its tensors do not fit each other, the host or the settings."""
    shapes = {own: stored.shape for own, (_, stored) in layer.items()}
    if len(shapes[KEYS]) != 4 or shapes[KEYS][2] != 2:
        raise Mistake(f"{layer[KEYS][0]} is {shapes[KEYS]}; wanted heads, sub-keys, 2 axes and the width of a sub-key")
    heads, num_keys, _, d_key = shapes[KEYS]
    cells = num_keys * num_keys
    rows = shapes[DOWN][0] if shapes[DOWN] else 0
    wanted = {QUERY: (2 * heads * d_key, d_model), DOWN: (rows, d_model), UP: (rows, d_model), NORM: (d_model,)}
    for own, shape in wanted.items():
        if own in shapes and shapes[own] != shape:
            raise Mistake(
                f"{layer[own][0]} is {shapes[own]}; beside keys of {shapes[KEYS]} and a host of width {d_model} it is "
                f"{shape}"
            )
    if rows not in (cells, heads * cells):
        raise Mistake(
            f"{layer[DOWN][0]} has {rows} experts; {num_keys} sub-keys an axis reach {cells}, or {heads * cells} with "
            "separate_embed_per_head"
        )
    pairs = 1 if settings.non_competing_scores else settings.num_experts_per_head
    if settings.product_key_topk < pairs:
        raise Mistake(
            f"product_key_topk={settings.product_key_topk} leaves out pairs that are among a head's best {pairs}; this "
            f"model compares all of them: wanted at least {pairs}"
        )
    gate: GateName = "relu" if settings.non_competing_scores else "softmax"
    return PeerSpec.model_validate(
        {
            "num_keys": num_keys, "num_experts": rows, "num_heads": heads, "sub_keys": "per-head", "d_key": d_key,
            "query_norm": False, "gate": gate, "pairs_per_head": pairs, "active_keys": 1,
            "activation": settings.activation, "pools": "shared" if rows == cells else "per-head",
        }
    )  # fmt: skip


def in_host(host: LanguageModel, layers: list[dict[str, tuple[str, Stored]]], settings: Settings) -> LanguageModel:
    """The host with these layers as its experts, block by block; in evaluation."""
    if len(layers) != host.shape.num_layers:
        raise Mistake(
            f"the files hold {len(layers)} layers and the host has {host.shape.num_layers} blocks; a block takes one "
            "each: name a host of as many"
        )
    specs = [spec_of(layer, host.shape.d_model, settings) for layer in layers]
    normed = [NORM in layer for layer in layers]
    for block, (spec, has_norm) in enumerate(zip(specs, normed, strict=True)):
        if spec != specs[0] or has_norm != normed[0]:
            raise Mistake(f"layer {block} is of another shape than layer 0; the layers of a model are alike")
    shape = host.shape.model_copy(update={"norm_eps": NORM_EPS}) if normed[0] else host.shape
    spec = ModelSpec(transformer=shape, experts=specs[0])
    tensors = dict(host.backbone_state())
    index = CellIndex(specs[0]).state_dict()  # an expert a cell, in their order
    for block, layer in enumerate(layers):
        tensors |= {f"model.layers.{block}.{name}": tensor for name, tensor in _read(layer).items()}
        tensors |= {f"model.layers.{block}.moe.index.{name}": tensor for name, tensor in index.items()}
    return LanguageModel.restore(specs[0].kind, spec.model_dump(mode="json"), tensors, {})


def _read(layer: Mapping[str, tuple[str, Stored]]) -> dict[str, Tensor]:
    """By their names in a block. Both write queries as rows of all heads, then columns of all heads."""
    own = {name: read_stored(theirs, stored, torch.float32) for name, (theirs, stored) in layer.items()}
    found = {
        "router.query.weight": own[QUERY],
        "router.row_keys": own[KEYS][:, :, 0].contiguous(),
        "router.column_keys": own[KEYS][:, :, 1].contiguous(),
        "moe.u": own[DOWN],
        "moe.bias": torch.zeros(len(own[DOWN])),
        "moe.v": own[UP],
    }
    return found | ({"post_attention_layernorm.weight": own[NORM] + 1} if NORM in own else {})
