"""What is known of every kind of expert layer: how a model is built from its spec, and what measures ask of it."""

# X experts, or parts of them, that share a gate out

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from kernels.errors import Mistake
from pipeline.models.contract import ExpertLayer, ExpertSpec, Vectors, vectors_of_tables
from pipeline.models.transformer import Block, TransformerSpec, Visit

S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """How a batch of tokens used the experts of a block."""

    gate_sums: Sequence[Tensor] = ()
    """(X) gates summed over tokens: one tensor for each set among which gates are shared out."""
    pairs: int = 0
    """Of a token and an expert; 0 where gates are those of parts of experts."""
    mismatches: int | None = None
    """Pairs on which retrieval and the firing rule do not agree; None where there is no such rule."""


def use_of_pairs(visit: Visit) -> Use:
    """By the layer's own pairs; nothing where no router shares anything out."""
    if visit.routing is None:
        return Use()
    pairs, num_experts = visit.pairs(), visit.experts.num_experts
    sums_E = torch.zeros(num_experts).index_add(0, pairs.expert_P.cpu(), pairs.gate_P.float().cpu())
    return Use(gate_sums=(sums_E,), pairs=len(pairs.expert_P))


def check_same_number(ours: ExpertLayer, theirs: ExpertLayer) -> None:
    """ValueError unless there are as many experts of one class."""
    if (ours.num_experts, ours.__class__) != (theirs.num_experts, theirs.__class__):
        names = [f"{layer.num_experts} experts of {layer.__class__.__name__}" for layer in (ours, theirs)]
        raise Mistake(f"{names[0]} and a teacher's {names[1]}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerKind(Generic[S]):
    """One kind of expert layer, as its file registers it."""

    spec: type[S]
    """A frozen pydantic model that is an `ExpertSpec`."""
    artifact_kinds: tuple[str, ...]
    """All that its specs give as `kind`."""
    router: Callable[[S, int, int], nn.Module | None]
    """Of a spec, the model's width and the number of the block; without one a block uses the routing of the nearest
    block below that has one."""
    experts: Callable[[S, int, int], ExpertLayer]
    fits: Callable[[S, TransformerSpec], None] = lambda spec, transformer: None
    """ValueError for a transformer that it cannot be part of."""
    sparse: Callable[[Block], Sequence[Tensor]] = lambda block: ()
    """Those of a block's parameters whose zeros stay while the others learn."""
    use: Callable[[Visit], Use] = use_of_pairs
    """What `measure_routing` counts."""
    settle: Callable[[S, nn.Module, Tensor, float], None] = lambda spec, router, x_ND, share: None
    """Sets what a router keeps of states, such as thresholds, anew from these, so that tokens reach `share` times the
    pairs of its spec where its gate leaves that open."""
    reads: Callable[[S], int] = lambda spec: 1
    """Tokens up to its own that a router or an expert reads as tokens, beside the state of its own."""
    cells: Callable[[Any], Tensor | None] = lambda experts: None
    """(E, 2) row and column of each expert of a layer in its key grid; None of experts that are in none."""
    check_same_pool: Callable[[Any, Any], None] = check_same_number
    """ValueError unless an expert of a layer and that of its number in a teacher's are the same one, as far as that can
    be seen; `drift` compares only such."""
    vectors: Callable[[Any, Tensor], Vectors] = vectors_of_tables
    """What the experts of these numbers read and write."""


LAYER_KINDS: dict[str, LayerKind[Any]] = {}
"""By what their specs have in the field `layer`."""


def enter(kind: LayerKind[Any]) -> None:
    """ValueError where another kind has the same `layer`."""
    name = kind.spec.model_fields["layer"].default
    if LAYER_KINDS.setdefault(name, kind) is not kind:
        raise Mistake(
            f"an expert layer {name!r} is registered already, by {LAYER_KINDS[name].spec.__name__}; give "
            f"{kind.spec.__name__} another word as its field `layer`"
        )


def kind_of(spec: ExpertSpec) -> LayerKind[Any]:
    return LAYER_KINDS[spec.layer]
