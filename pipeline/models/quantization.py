"""Float PEER to int8 and int4, tables alone: routers, biases and everything else stay float."""

import math

import torch
from torch import Tensor

from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer import PeerExperts, PeerSpec
from pipeline.models.quantized import Int4Table, Int8Table, QuantizedExperts, quantize_int4, quantize_int8

# E experts, D model width


def requantized(model: LanguageModel, update: dict[str, object]) -> LanguageModel:
    """A model of the same shape but for these fields of its expert spec, sharing every tensor that both have."""
    assert isinstance(model.spec.experts, PeerSpec)
    spec = PeerSpec.model_validate({**model.spec.experts.model_dump(), **update})
    twin = LanguageModel(ModelSpec(transformer=model.spec.transformer, experts=spec)).to(model.lm_head.weight.device)
    names = twin.state_dict().keys()
    twin.load_state_dict({k: t for k, t in model.state_dict().items() if k in names}, strict=False)
    return twin.eval()


@torch.no_grad()
def to_int8(peer: LanguageModel) -> LanguageModel:
    """Rows symmetric, their largest absolute value at 127."""
    model = requantized(peer, {"precision": "int8"})
    for table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int8Table)
        value_ED, scale_E = quantize_int8(rows_ED)
        table.value_ED.copy_(value_ED)
        table.scale_E.copy_(scale_E)
    return model


@torch.no_grad()
def to_int4(peer: LanguageModel, *, clips: int) -> LanguageModel:
    """Rows symmetric in [-7, 7], each at the scale of least squared error among `clips` candidates."""
    model = requantized(peer, {"precision": "int4"})
    for table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int4Table)
        table.set(*quantize_int4(rows_ED, clips))
    return model


def _tables(model: LanguageModel, peer: LanguageModel) -> list[tuple[torch.nn.Module, Tensor]]:
    pairs = []
    for ours, theirs in zip(model.blocks(), peer.blocks(), strict=True):
        assert isinstance(ours.moe, QuantizedExperts)
        assert isinstance(theirs.moe, PeerExperts)
        pairs += [(ours.moe.u, theirs.moe.u), (ours.moe.v, theirs.moe.v)]
    return pairs


@torch.no_grad()
def sqnr_db(model: LanguageModel, peer: LanguageModel) -> float:
    """Signal to quantization noise of all tables together, decibels."""
    signal = noise = 0.0
    for table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int8Table | Int4Table)
        read_ED = table.rows(torch.arange(len(rows_ED), device=rows_ED.device))
        signal += rows_ED.double().square().sum().item()
        noise += (read_ED - rows_ED).double().square().sum().item()
    # Tables that int4 writes exactly have no noise; a metric must be finite.
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))
