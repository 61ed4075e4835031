"""The contract of a model that is restored from a file: what every number in it must be.

Held when a model is loaded, for every kind, so that what runs afterwards gives the same numbers on each execution path:
C++ checks few of these numbers at a call, and the stock ops none. A module whose tensors have rules of their own says
so by `takes`; what an expert layer asks beyond single numbers is its `check`.
"""

# X any shape

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from artifacts import ArtifactError
from pipeline.models.contract import leaves

REMEDY = "copy its file again, or make the artifact again"


class Rule(NamedTuple):
    wrong: Callable[[Tensor], Tensor]
    """Where a tensor breaks it; as many entries as the tensor has."""
    takes: str
    """What the tensor takes, for people."""


FINITE = Rule(lambda value_X: ~torch.isfinite(value_X), "finite numbers")
NOT_NEGATIVE = Rule(lambda value_X: ~((value_X >= 0) & (value_X < torch.inf)), "finite numbers of at least 0")
SCALE = Rule(lambda scale_X: ~((scale_X > 0) & (scale_X < torch.inf)), "finite scales above 0")
THRESHOLD = Rule(
    lambda value_X: ~(value_X < torch.inf), "finite thresholds, or minus infinity where every pair that passes fires"
)
BOOL = Rule(lambda bool_X: bool_X.view(torch.uint8) > 1, "bytes of 0 or 1")
"""Of another byte each compiler makes what it likes."""

Rules = Mapping[str, Rule | None]
"""By the names of tensors; None where an expert layer's `check` says what they take."""

_RULES: dict[type[nn.Module], Callable[[Any], Rules]] = {nn.BatchNorm1d: lambda module: {"running_var": NOT_NEGATIVE}}
"""Of tensors that have one of their own, of a module of this class."""

M = TypeVar("M", bound=type[nn.Module])


def takes(rules: Callable[[Any], Rules]) -> Callable[[M], M]:
    """Class decorator: what tensors of such a module take, where that is not what all of their dtype do."""

    def wrap(cls: M) -> M:
        _RULES[cls] = rules
        return cls

    return wrap


def check_sound(model: nn.Module) -> None:
    """ArtifactError that names the first tensor, and its entry, that is outside the contract."""
    paths = {module: path for path, module in model.named_modules()}
    try:
        for module, path in paths.items():
            own = _RULES.get(type(module), lambda _: {})(module)
            for name, tensor in _own_tensors(module):
                rule = own.get(name, _rule_of(tensor.dtype))
                if rule is not None:
                    refuse_where(rule.wrong(tensor), tensor, f"{path}.{name}", rule.takes)
        for layer in leaves(model):  # last, since it reads tensors of modules within it
            layer.check(paths[layer])
    except ValueError as error:
        raise ArtifactError(str(error)) from None


def refuse_where(wrong_X: Tensor, tensor_X: Tensor, name: str, takes: str) -> None:
    """ValueError that names the first entry of the tensor that is wrong."""
    if bool(wrong_X.any()):
        at = tuple(wrong_X.nonzero()[0].tolist())
        where = at[0] if len(at) == 1 else at
        raise ValueError(f"tensor {name!r} holds {tensor_X[at].item()} at {where}; it takes {takes}; {REMEDY}")


def _rule_of(dtype: torch.dtype) -> Rule | None:
    """Where a tensor has none of its own."""
    if dtype.is_floating_point:
        return FINITE
    return BOOL if dtype == torch.bool else None


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)
