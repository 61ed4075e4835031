"""Float PEER to int8 and int4, tables alone: routers, biases and everything else stay float."""

import torch
from torch import Tensor

from kernels.errors import Mistake
from pipeline.models.contract import Table
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.spec import PeerSpec
from pipeline.transforms.table_error import all_rows

# E experts, D model width


def requantized(model: LanguageModel, update: dict[str, object]) -> LanguageModel:
    """A model of the same shape but for these fields of its expert spec, sharing every tensor that both have."""
    before = model.spec.experts_as(PeerSpec)
    spec = PeerSpec.model_validate({**before.model_dump(), **update})
    if before.precision == "int4" and spec.scale_groups != before.scale_groups:
        raise AssertionError("the scales of int4 tables cannot be regrouped; quantize the float model anew")
    twin = LanguageModel(ModelSpec(transformer=model.spec.transformer, experts=spec)).to(model.lm_head.weight.device)
    names = twin.state_dict().keys()
    twin.load_state_dict({k: t for k, t in model.state_dict().items() if k in names}, strict=False)
    return twin.eval()


@torch.no_grad()
def to_int8(peer: LanguageModel) -> LanguageModel:
    """Rows symmetric, their largest absolute value at 127. ValueError names a row that has no scale, and its table."""
    return _rounded(peer, {"precision": "int8"}, clips=1)


@torch.no_grad()
def to_int4(peer: LanguageModel, *, clips: int, groups: int = 1) -> LanguageModel:
    """Rows symmetric in [-7, 7], each of their groups at the scale of least squared error among `clips` candidates.

    ValueError names a row that has no scale, and its table; or a number of groups that does not fit the width.
    """
    return _rounded(peer, {"precision": "int4", "scale_groups": groups}, clips=clips)


def _rounded(peer: LanguageModel, update: dict[str, object], *, clips: int) -> LanguageModel:
    model = requantized(peer, update)
    for name, table, rows_ED in _tables(model, peer):
        try:
            table.take(rows_ED, clips)
        except ValueError as error:
            raise Mistake(f"{name}: {error}") from error
    return model


def _tables(model: LanguageModel, peer: LanguageModel) -> list[tuple[str, Table, Tensor]]:
    """Name, our table and the float rows of every table."""
    return [
        (f"{name} of block {layer}", ours.tables()[name], all_rows(table))
        for layer, (ours, theirs) in enumerate(zip(model.expert_layers(), peer.expert_layers(), strict=True))
        for name, table in theirs.tables().items()
    ]


def rows_below_smallest_scale(model: LanguageModel, peer: LanguageModel) -> int:
    """Rows, not of zeros, whose scale float16 would round coarsely, so that a larger one was taken."""
    return sum(table.rows_below_smallest_scale(rows_ED) for _, table, rows_ED in _tables(model, peer))
