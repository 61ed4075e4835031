"""A model is built from a spec only as far as the file that is to fill it goes.

A spec is a few numbers, which cost nothing to write; without this, one with a wrong width allocates gigabytes before
its tensors are compared. torch's own device "meta" would not allocate, but imports Triton and the compiler (1.4 s).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from artifacts import ArtifactError

SLACK = 2**20
"""Elements beyond the file's: scratch of tiny models, and room to name the one tensor that is missing."""

_BY_SIZE = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.full}


class WithinFile(TorchFunctionMode):
    """Within it, ArtifactError before more than twice as many elements are made as these tensors have."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.held = sum(tensor.numel() for tensor in tensors)
        self.asked = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.asked += _elements(func, args, kwargs or {})
        if self.asked > 2 * self.held + SLACK:
            raise ArtifactError(
                f"the spec asks for {self.asked} numbers and more, where the file holds {self.held}: it is not the "
                "spec of these tensors; copy the artifact again, or make it again"
            )
        return func(*args, **(kwargs or {}))


def _elements(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Of what this call of a factory makes; 0 of all other functions."""
    if func is torch.arange:
        return max(int(value) for value in args)
    if func not in _BY_SIZE:
        return 0
    size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
    return math.prod(size)
