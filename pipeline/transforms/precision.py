"""Float PEER to int8 and int4, tables alone: routers, biases and everything else stay float."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.experts import QuantizedExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.models.tables.rounding import (
    INT4_MOST,
    INT8_MOST,
    SMALLEST_SCALE,
    absmax_scales,
    quantize_int4,
    quantize_int8,
)

# E experts, D model width


def requantized(model: LanguageModel, update: dict[str, object]) -> LanguageModel:
    """A model of the same shape but for these fields of its expert spec, sharing every tensor that both have."""
    assert isinstance(model.spec.experts, PeerSpec)
    spec = PeerSpec.model_validate({**model.spec.experts.model_dump(), **update})
    if model.spec.experts.precision == "int4" and spec.scale_groups != model.spec.experts.scale_groups:
        raise AssertionError("the scales of int4 tables cannot be regrouped; quantize the float model anew")
    twin = LanguageModel(ModelSpec(transformer=model.spec.transformer, experts=spec)).to(model.lm_head.weight.device)
    names = twin.state_dict().keys()
    twin.load_state_dict({k: t for k, t in model.state_dict().items() if k in names}, strict=False)
    return twin.eval()


@torch.no_grad()
def to_int8(peer: LanguageModel) -> LanguageModel:
    """Rows symmetric, their largest absolute value at 127. ValueError names a row that has no scale, and its table."""
    model = requantized(peer, {"precision": "int8"})
    for name, table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int8Table)
        with _named(name):
            value_ED, scale_E = quantize_int8(rows_ED)
        table.value_ED.copy_(value_ED)
        table.scale_E.copy_(scale_E)
    return model


@torch.no_grad()
def to_int4(peer: LanguageModel, *, clips: int, groups: int = 1) -> LanguageModel:
    """Rows symmetric in [-7, 7], each of their groups at the scale of least squared error among `clips` candidates.

    ValueError names a row that has no scale, and its table; or a number of groups that does not fit the width.
    """
    model = requantized(peer, {"precision": "int4", "scale_groups": groups})
    for name, table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int4Table)
        with _named(name):
            quantized = quantize_int4(rows_ED, clips, groups)
        table.set(*quantized)
    return model


def _tables(model: LanguageModel, peer: LanguageModel) -> list[tuple[str, torch.nn.Module, Tensor]]:
    """Name, our table and the float rows of every table."""
    tables = []
    for layer, (ours, theirs) in enumerate(zip(model.blocks(), peer.blocks(), strict=True)):
        assert isinstance(ours.moe, QuantizedExperts)
        assert isinstance(theirs.moe, PeerExperts)
        tables.append((f"u of block {layer}", ours.moe.u, theirs.moe.u))
        tables.append((f"v of block {layer}", ours.moe.v, theirs.moe.v))
    return tables


@contextmanager
def _named(table: str) -> Iterator[None]:
    """Within it, a ValueError says which table it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


@torch.no_grad()
def sqnr_db(model: LanguageModel, peer: LanguageModel) -> float:
    """Signal to quantization noise of all tables together, decibels."""
    signal = noise = 0.0
    for _, table, rows_ED in _tables(model, peer):
        assert isinstance(table, Int8Table | Int4Table)
        read_ED = table.rows(torch.arange(len(rows_ED), device=rows_ED.device))
        signal += rows_ED.double().square().sum().item()
        noise += (read_ED - rows_ED).double().square().sum().item()
    # Tables that int4 writes exactly have no noise; a metric must be finite.
    return 10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30))


@torch.no_grad()
def rows_below_smallest_scale(model: LanguageModel, peer: LanguageModel) -> int:
    """Rows, not of zeros, whose scale float16 would round coarsely, so that a larger one was taken."""
    rows = 0
    for _, table, rows_ED in _tables(model, peer):
        most, groups = (INT4_MOST, table.groups) if isinstance(table, Int4Table) else (INT8_MOST, 1)
        scale_EG = absmax_scales(rows_ED, most, groups)
        rows += int(((scale_EG > 0) & (scale_EG < SMALLEST_SCALE)).any(1).sum())
    return rows
