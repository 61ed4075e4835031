"""The contract of a model that is restored from a file: what every number in it must be.

Held when a model is loaded, for every kind, so that what runs afterwards gives the same numbers on each execution path:
C++ checks few of these numbers at a call, and the stock ops none.
"""

# E experts, B bytes of a packed row, C cells, X any shape

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from artifacts import ArtifactError
from pipeline.models.peer.cells import CellIndex
from pipeline.models.peer.router import PeerRouter
from pipeline.models.symbols import SymbolExperts
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.models.tables.rounding import INT4_MOST, INT8_MOST
from pipeline.models.transformer import Transformer

REMEDY = "copy its file again, or make the artifact again"


class _Rule(NamedTuple):
    wrong: Callable[[Tensor], Tensor]
    """Where a tensor breaks it; as many entries as the tensor has."""
    takes: str
    """What the tensor takes, for people."""


def _has_least_nibble(packed_EB: Tensor) -> Tensor:
    """Whether either nibble of a byte is -8, which no rounding makes: rows are symmetric."""
    return ((packed_EB & 0x0F) == 8) | ((packed_EB >> 4) == 8)


_FINITE = _Rule(lambda value_X: ~torch.isfinite(value_X), "finite numbers")
_NOT_NEGATIVE = _Rule(lambda value_X: ~((value_X >= 0) & (value_X < torch.inf)), "finite numbers of at least 0")
_SCALE = _Rule(lambda scale_X: ~((scale_X > 0) & (scale_X < torch.inf)), "finite scales above 0")
_THRESHOLD = _Rule(
    lambda value_X: ~(value_X < torch.inf), "finite thresholds, or minus infinity where every pair that passes fires"
)
_NIBBLES = _Rule(_has_least_nibble, f"bytes of two nibbles from -{INT4_MOST} to {INT4_MOST}, none of -8")
_BOOL = _Rule(lambda bool_X: bool_X.view(torch.uint8) > 1, "bytes of 0 or 1")
"""Of another byte each compiler makes what it likes."""
_INT8 = _Rule(lambda value_X: value_X < -INT8_MOST, f"values from -{INT8_MOST} to {INT8_MOST}")

_INT4_TABLE = {"weight_EB": _NIBBLES, "scale_E": _SCALE, "scale_EG": _SCALE, "moment_E": _NOT_NEGATIVE}
_RULES: dict[type[nn.Module], dict[str, _Rule]] = {
    nn.BatchNorm1d: {"running_var": _NOT_NEGATIVE},
    Int8Table: {"value_ED": _INT8, "scale_E": _SCALE},
    Int4Table: _INT4_TABLE,
}
"""Of tensors that have one of their own."""


def check_sound(model: Transformer) -> None:
    """ArtifactError that names the first tensor, and its entry, that is outside the contract."""
    for path, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            if isinstance(module, SymbolExperts) and tensor.is_floating_point():
                continue  # `_check_symbols` below names them as tables
            rule = _rules_of(module).get(name, _rule_of(tensor.dtype))
            if rule is not None:
                _refuse_where(rule.wrong(tensor), tensor, f"{path}.{name}", rule.takes)
        if isinstance(module, CellIndex):
            _check_cells(module, path)
    for layer, block in enumerate(model.blocks()):  # last, since it reads tensors of modules within it
        _check_symbols(block.moe, layer)


def _rules_of(module: nn.Module) -> dict[str, _Rule]:
    if isinstance(module, PeerRouter):
        return dict.fromkeys(module.gate.thresholds, _THRESHOLD)
    return _RULES.get(type(module), {})


def _rule_of(dtype: torch.dtype) -> _Rule | None:
    """Where a tensor has none of its own."""
    if dtype.is_floating_point:
        return _FINITE
    return _BOOL if dtype == torch.bool else None


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _check_cells(index: CellIndex, path: str) -> None:
    """In 64 bits: a row of int32 would wrap around where a block's start and an offset add up to more."""
    start_C1 = index.stored.at(torch.arange(index.stored.cells + 1))
    wrong_C1 = torch.cat([start_C1[:1] != 0, start_C1.diff() < 0])
    wrong_C1[-1] |= start_C1[-1] != index.num_experts
    takes = f"starts of cells that rise from 0 to {index.num_experts}, the number of experts"
    _refuse_where(wrong_C1, start_C1, f"{path}.offset_C1", takes)


def _check_symbols(experts: nn.Module, layer: int) -> None:
    if isinstance(experts, SymbolExperts):
        try:
            experts.check()
        except ValueError as error:
            raise ArtifactError(f"layer {layer}, {error}") from None


def _refuse_where(wrong_X: Tensor, tensor_X: Tensor, name: str, takes: str) -> None:
    if bool(wrong_X.any()):
        at = tuple(wrong_X.nonzero()[0].tolist())
        where = at[0] if len(at) == 1 else at
        raise ArtifactError(f"tensor {name!r} holds {tensor_X[at].item()} at {where}; it takes {takes}; {REMEDY}")
