"""A larger int4 pool that computes the same: one axis of the key grid doubled, new experts beside the old ones.

Every sub-key of the doubled axis gets a twin of equal score, so each pair of a row and a column is found twice. A gate
normalises over both (softmax over the best pairs, or the log-sum-exp of an axis), so each gets half. In the old cell
lie the old experts, their v twice as large (a power of two: exact in a float16 scale); in the twin's cell as many new
ones, whose u is random and whose v is zero. Nothing changes until training moves the new v and parts the twins.
"""

# D model width, H heads, I sub-keys of the rows, J of the columns, E experts, F = 2 E of the larger pool, C cells

import torch
from torch import Tensor

from kernels.sr_update.row_rule import INT4, NIBBLES
from pipeline.models.language_model import LanguageModel, ModelSpec
from pipeline.models.peer.gates import GATES
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.tables.experts import TableExperts
from pipeline.models.tables.int4 import Int4Table

TIE_MARGIN = 1e-5
"""Deviations of a head's scores. A sub-key and its twin differ by some 1e-6 of them, by the order of their sums."""


@torch.no_grad()
def doubled(model: LanguageModel, generator: torch.Generator) -> LanguageModel:
    """The int4 model with twice the experts and, at this moment, the same outputs.

    Rows are doubled where the grid has an even number of columns a row, else columns. A head reaches twice the pairs.
    ValueError for a model of other tables, with grouped scales, or with scales that cannot be doubled.
    """
    grows = "only int4 tables with one scale a row grow; this is a"
    if model.kind != "peer-int4":
        raise ValueError(f"{grows} {model.kind!r}")
    spec = model.spec.experts_as(PeerSpec)
    if spec.scale_groups > 1:
        raise ValueError(f"{grows} {model.kind!r} with scale_groups={spec.scale_groups}")
    GATES[spec.gate].check_doubling(spec)
    axis, larger_spec = spec.doubled_grid()
    # Every pair is found twice, so a head must keep or fire twice as many.
    twice = {"pairs_per_head": 2 * spec.pairs_per_head, "tie_margin": TIE_MARGIN}
    larger_spec = PeerSpec.model_validate({**larger_spec.model_dump(), **twice})
    transformer = model.spec.transformer
    larger = LanguageModel(ModelSpec(transformer=transformer, experts=larger_spec)).to(model.lm_head.weight.device)
    larger.take_state(model)
    old_routers = model.routers_of(PeerRouter)
    for layer, router in larger.routers_of(PeerRouter).items():
        _twin_keys(router, old_routers[layer], axis)
    layers = zip(larger.expert_layers_of(TableExperts), model.expert_layers_of(TableExperts), strict=True)
    for layer, (new, old) in enumerate(layers):
        _add_experts(new, old, axis, layer, generator)
    return larger.eval()


def _twin_keys(new: PeerRouter, old: PeerRouter, axis: int) -> None:
    """Every sub-key of this axis twice: the old ones first, then their twins in the same order."""
    heads = old.spec.num_heads
    if old.spec.sub_keys == "identity":
        targets = [(new.query.weight, old.query.weight)]
        if old.spec.score_features:
            targets.append((new.query.bias, old.query.bias))
        statistics = zip(new.query_norm.buffers(), old.query_norm.buffers(), strict=True)
        targets += [(ours, theirs) for ours, theirs in statistics if theirs.ndim]  # not its count of batches
        for target, source in targets:
            parts = [part.unflatten(0, (heads, -1)) for part in source.split(old.widths)]
            parts[axis] = torch.cat([parts[axis], parts[axis]], dim=1)
            target.copy_(torch.cat([part.flatten(0, 1) for part in parts]))
    else:
        target, source = ((new.row_keys, old.row_keys), (new.column_keys, old.column_keys))[axis]
        target.copy_(torch.cat([source, source], dim=1))
    old.gate.copy_doubled(new, old)


def _add_experts(new: TableExperts, old: TableExperts, axis: int, layer: int, generator: torch.Generator) -> None:
    """Old experts into their cells of the larger grid, new ones into the twins' cells."""
    old_place_E, new_place_E, start_C1 = _places(old, axis)
    new.index.place(start_C1)
    for place_E in (old_place_E, new_place_E):
        new.bias[place_E] = old.bias
    tables, old_tables = new.tables_of(Int4Table), old.tables_of(Int4Table)
    for which, mine in tables.items():
        theirs = old_tables[which]
        factor = 2.0 if which == "v" else 1.0
        if not bool(torch.isfinite(theirs.scale_E * factor).all()):
            raise ValueError(f"a scale of {which} in block {layer} is above {65504 / factor:g} and cannot be doubled")
        mine.weight_EB[old_place_E] = theirs.weight_EB
        for place_E in (old_place_E, new_place_E):
            mine.scale_E[place_E] = theirs.scale_E * factor
        if mine.has_accumulator:
            mine.accumulator_EB[old_place_E] = theirs.accumulator_EB
            mine.moment_E[old_place_E] = theirs.moment_E / factor**2  # half the gate, half the gradient of v
        if which == "u":
            _draw(mine, theirs, new_place_E, generator, sparse=new.spec.u_terms > 0)
    if new.axis_bias is not None and old.axis_bias is not None:
        target, source = ((new.axis_bias.row, old.axis_bias.row), (new.axis_bias.column, old.axis_bias.column))[axis]
        target.copy_(torch.cat([source, source]))


def _draw(mine: Int4Table, theirs: Int4Table, place_E: Tensor, generator: torch.Generator, *, sparse: bool) -> None:
    """Normal rows with the root mean square and the scale of those of the experts beside them.

    Of sparse rows a new one reads the coordinates that the one beside it reads.
    """
    pieces = max(1, theirs.weight_EB.numel() // 2**19)
    for row_R in torch.arange(len(place_E)).tensor_split(pieces):
        grid, value_RD = NIBBLES if theirs.has_accumulator else INT4, theirs.latents(row_R).float()
        size_R1 = value_RD.square().mean(1, keepdim=True).sqrt()
        drawn_RD = torch.randn(value_RD.shape, generator=generator).to(size_R1) * size_R1
        if sparse:
            drawn_RD *= (value_RD != 0) * (value_RD.shape[1] / (value_RD != 0).sum(1, keepdim=True).clamp(min=1)).sqrt()
        drawn_RD = drawn_RD.round().clamp(grid.lowest, grid.highest).to(torch.int8)
        mine.put_latents(place_E[row_R], drawn_RD)


def _places(old: TableExperts, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """(E), (E) where the old and the new experts lie in the larger pool, and its (C + 1) starts of cells."""
    num_rows, num_columns = old.spec.num_keys, old.spec.num_columns
    cell_start_C1 = old.index.stored.row().long()
    count_IJ = cell_start_C1.diff().unflatten(0, (num_rows, num_columns))
    expert_E = torch.arange(old.spec.num_experts, device=count_IJ.device)
    count = torch.cat([count_IJ, count_IJ], dim=axis).flatten()
    start_C1 = torch.cat([count.new_zeros(1), count.cumsum(0)])
    if axis == 0:
        return expert_E, expert_E + old.spec.num_experts, start_C1
    row_E = old.index.cell_of_experts() // num_columns
    row_start_I1 = cell_start_C1[::num_columns]
    # Before an expert of row r lie the new experts of the rows above; before its twin those of row r, too.
    return expert_E + row_start_I1[row_E], expert_E + row_start_I1[row_E + 1], start_C1
