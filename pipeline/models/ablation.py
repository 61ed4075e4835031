"""A model without some of its experts for a while; nothing is written into it, and nothing of it is copied."""

# N tokens of a forward pass, D model width, E experts, X experts that are left out, Q of them on single tokens

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from kernels.errors import Mistake
from pipeline.models.contract import Chosen, ExpertLayer
from pipeline.models.transformer import Transformer

Ids = Sequence[int] | Iterable[int] | Tensor
"""Numbers of experts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Single experts on single tokens: the first of `experts` on the first of `tokens`, and so on."""

    tokens: Ids
    """Of the forward pass, as expert layers number them: row * T + position of a batch of T tokens a row."""
    experts: Ids

    @classmethod
    def at(cls, rows: Ids, positions: Ids, experts: Ids, *, length: int) -> "Places":
        """The same by row of the batch and position in it, rows being of this length."""
        row_Q, position_Q = _whole_numbers(rows, "rows"), _whole_numbers(positions, "positions")
        _check_range(position_Q, length, "position", f"rows of {length} tokens")
        return cls(tokens=row_Q * length + position_Q, experts=experts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What some experts of a block add on the mean token of a sample."""

    expert_X: Tensor
    """Ascending."""
    mean_XD: Tensor

    def of(self, expert_Q: Tensor, block: int) -> Tensor:
        """(Q, D). ValueError names an expert whose mean is not known."""
        unknown_Q = ~torch.isin(expert_Q, self.expert_X)
        if unknown_Q.any():
            raise Mistake(
                f"the mean of expert {int(expert_Q[unknown_Q][0])} of block {block} is not known; give "
                "mean_contributions every expert that is left out"
            )
        return self.mean_XD[torch.searchsorted(self.expert_X, expert_Q)]


@contextmanager
def ablated(
    model: Transformer, experts: Mapping[int, Ids | Places], means: Mapping[int, Means] | None = None
) -> Iterator[None]:
    """Within it, these experts of these blocks add nothing: `with ablated(model, {2: [165]}): ...`.

    An expert's gate times its output is left out of the sum of its block, for all heads that reach it. No gate is
    normalised again and the block's routing stays what it was, so `pairs` still lists the expert; routers above see
    the changed residual stream and choose anew. `Places` leave experts out on single tokens only.

    With `means` (`mean_contributions`) the expert's mean stands in its place, the same vector on every token that it
    is left out on, also where it does not fire: its contribution no longer depends on the token.

    Contexts nest: what is left out is the union, and an expert in several is taken out once; its mean is the
    innermost's. One that is left out everywhere is so, whatever `Places` say. However a context ends, the layers are
    what they were.

    What the experts add is computed again and subtracted, after the layer has run by whichever path it runs. A token
    on which none of them fires keeps its bits. On the others the output differs from that of a copy whose rows of v
    are zeros by the rounding of a float32: measured up to 3e-7 of its largest element, on either path. Gradients
    flow as through the layer; those of tables that are no parameters still count experts that are left out.
    """
    entries = {block: _Entry.of(model, block, chosen, means) for block, chosen in experts.items()}
    layers = {_layer(model, block): entry for block, entry in entries.items()}
    ablations = [(_BY_LAYER.setdefault(layer, _Ablation()), layer, entry) for layer, entry in layers.items()]
    try:
        for ablation, layer, entry in ablations:
            ablation.enter(layer, entry)
        yield
    finally:
        for ablation, _, entry in ablations:
            ablation.leave(entry)


@torch.no_grad()
def mean_contributions(
    model: Transformer, sample: Tensor | Iterable[Tensor], experts: Mapping[int, Ids]
) -> dict[int, Means]:
    """By block, what these experts add on the mean of all tokens of a sample, (B, T) windows or batches of them.

    A token on which an expert does not fire counts as 0. A block is measured as it is: within `ablated`, without what
    is left out below it.
    """
    expert_X = {block: _ids(_layer(model, block), block, of).unique() for block, of in experts.items()}
    sum_XD = {
        block: torch.zeros(len(of_X), model.shape.d_model, dtype=torch.float64) for block, of_X in expert_X.items()
    }
    tokens = 0
    for tokens_BT in [sample] if isinstance(sample, Tensor) else sample:
        tokens += tokens_BT.numel()
        for block, visit in enumerate(model.walk(tokens_BT)):
            for at, expert in enumerate(expert_X.get(block, ())):
                only = Chosen(expert_X=expert[None], token_Q=expert.new_empty(0), expert_Q=expert.new_empty(0))
                part_ND = visit.experts.added(visit.x_ND, visit.routing, only.to(visit.x_ND.device))
                sum_XD[block][at] += part_ND.double().sum(0).cpu()
    if not tokens:
        raise Mistake("the sample has no tokens, so there is no mean; give windows of (rows, positions) tokens")
    return {block: Means(expert_X=expert_X[block], mean_XD=sum_XD[block] / tokens) for block in expert_X}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Entry:
    """What one context leaves out of one layer."""

    chosen: Chosen
    mean_XD: Tensor | None
    """What stands in the place of experts that are left out everywhere."""
    mean_QD: Tensor | None

    @classmethod
    def of(cls, model: Transformer, block: int, experts: Ids | Places, means: Mapping[int, Means] | None) -> "_Entry":
        layer, none = _layer(model, block), torch.empty(0, dtype=torch.int64)
        if isinstance(experts, Places):
            token_Q, expert_Q = _whole_numbers(experts.tokens, "tokens"), _ids(layer, block, experts.experts)
            if len(token_Q) != len(expert_Q):
                raise Mistake(f"block {block}: {len(token_Q)} tokens and {len(expert_Q)} experts; name one for each")
            _check_range(token_Q, 2**62 // layer.num_experts, "token", "every forward pass")
            place_Q = (token_Q * layer.num_experts + expert_Q).unique()
            chosen = Chosen(expert_X=none, token_Q=place_Q // layer.num_experts, expert_Q=place_Q % layer.num_experts)
        else:
            chosen = Chosen(expert_X=_ids(layer, block, experts).unique(), token_Q=none, expert_Q=none)
        if means is None:
            return cls(chosen=chosen, mean_XD=None, mean_QD=None)
        if block not in means:
            raise Mistake(f"the means of block {block} are not known; give mean_contributions that block too")
        of = means[block].of
        return cls(chosen=chosen, mean_XD=of(chosen.expert_X, block), mean_QD=of(chosen.expert_Q, block))


@dataclass(slots=True)
class _Ablation:
    """What all contexts that are open leave out of one layer, and the hook by which they do."""

    entries: list[_Entry] = field(default_factory=list)
    handle: RemovableHandle | None = None
    busy: bool = False
    """While the hook itself runs the layer."""

    def __deepcopy__(self, memo: dict[int, object]) -> "_Ablation":
        """A layer that is copied meanwhile obeys the same contexts, and is whole when they end."""
        return self

    def enter(self, layer: ExpertLayer, entry: _Entry) -> None:
        self.entries.append(entry)
        if self.handle is None:
            self.handle = layer.register_forward_hook(self.hook)

    def leave(self, entry: _Entry) -> None:
        """Also of one that was not entered."""
        if entry in self.entries:
            self.entries.remove(entry)
        if not self.entries and self.handle is not None:
            self.handle.remove()
            self.handle = None

    def hook(self, layer: Any, given: tuple[Tensor, Any], y_ND: Tensor) -> Tensor:
        """The layer's output without the union of the entries."""
        if self.busy or not self.entries:
            return y_ND
        x_ND, routing = given
        self.busy = True
        try:
            left_out = _union(self.entries, layer.num_experts)
            _check_range(left_out.chosen.token_Q, len(x_ND), "token", f"a forward pass of {len(x_ND)} tokens")
            y_ND = y_ND - layer.added(x_ND, routing, left_out.chosen.to(x_ND.device))
        finally:
            self.busy = False
        if left_out.mean_XD is not None:
            y_ND = y_ND + left_out.mean_XD.sum(0).to(y_ND)
        if left_out.mean_QD is not None:
            y_ND = y_ND.index_add(0, left_out.chosen.token_Q.to(y_ND.device), left_out.mean_QD.to(y_ND))
        return y_ND


_BY_LAYER: WeakKeyDictionary[ExpertLayer, _Ablation] = WeakKeyDictionary()


def _union(entries: Sequence[_Entry], num_experts: int) -> _Entry:
    """All that they leave out, each once; of an expert in several, the last entry's mean."""
    if len(entries) == 1:
        return entries[0]
    last_first = entries[::-1]
    expert_X, mean_XD = _first_of(
        torch.cat([entry.chosen.expert_X for entry in last_first]), [entry.mean_XD for entry in last_first],
        [len(entry.chosen.expert_X) for entry in last_first],
    )  # fmt: skip
    place_Q, mean_QD = _first_of(
        torch.cat([entry.chosen.token_Q * num_experts + entry.chosen.expert_Q for entry in last_first]),
        [entry.mean_QD for entry in last_first],
        [len(entry.chosen.expert_Q) for entry in last_first],
    )
    kept_Q = ~torch.isin(place_Q % num_experts, expert_X)
    place_Q, mean_QD = place_Q[kept_Q], None if mean_QD is None else mean_QD[kept_Q]
    chosen = Chosen(expert_X=expert_X, token_Q=place_Q // num_experts, expert_Q=place_Q % num_experts)
    return _Entry(chosen=chosen, mean_XD=mean_XD, mean_QD=mean_QD)


def _first_of(key_X: Tensor, means: Sequence[Tensor | None], counts: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The keys, ascending and each once, and the mean that stands beside the first of each; zeros where none is."""
    unique_U, inverse_X = key_X.unique(return_inverse=True)
    first_U = torch.full_like(unique_U, len(key_X)).scatter_reduce(
        0, inverse_X, torch.arange(len(key_X)), reduce="amin"
    )
    known = next((mean for mean in means if mean is not None), None)
    if known is None:
        return unique_U, None
    parts = [
        known.new_zeros(count, known.shape[1]) if mean is None else mean
        for mean, count in zip(means, counts, strict=True)
    ]
    return unique_U, torch.cat(parts)[first_U]


def _layer(model: Transformer, block: int) -> ExpertLayer:
    """The expert layer of a block. Mistake where there is none."""
    blocks = model.blocks()
    if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < len(blocks):
        raise Mistake(f"there is no block {block!r}; the model has blocks 0 to {len(blocks) - 1}")
    layer = blocks[block].moe
    if not isinstance(layer, ExpertLayer) or not layer.num_experts:
        raise Mistake(f"block {block} has no experts to leave out, but {type(layer).__name__}; name another block")
    return layer


def _ids(layer: ExpertLayer, block: int, experts: Ids) -> Tensor:
    expert_X = _whole_numbers(experts, f"the experts of block {block}")
    _check_range(expert_X, layer.num_experts, "expert", f"block {block}, which has {layer.num_experts:,} experts")
    return expert_X


def _whole_numbers(given: Ids, what: str) -> Tensor:
    """(X) int64, on the CPU."""
    if isinstance(given, int | str):
        raise Mistake(f"{what} are {given!r}, and a list of whole numbers was needed; write [{given}]")
    if not isinstance(given, Tensor):
        given = torch.tensor(numbers) if (numbers := [*given]) else torch.empty(0, dtype=torch.int64)
    if given.ndim != 1 or given.dtype.is_floating_point or given.dtype == torch.bool:
        got = f"{str(given.dtype).removeprefix('torch.')} of shape {tuple(given.shape)}"
        raise Mistake(f"{what} are {got}, and a list of whole numbers was needed")
    return given.detach().to("cpu", torch.int64)


def _check_range(of_X: Tensor, limit: int, what: str, where: str) -> None:
    wrong_X = of_X[(of_X < 0) | (of_X >= limit)]
    if len(wrong_X):
        raise Mistake(f"{what} {int(wrong_X[0])} is not in {where}; the {what}s go from 0 to {limit - 1:,}")
