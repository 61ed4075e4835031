"""In which float types a model's numbers are: what a cast of the whole model leaves alone, and what autocast does not
reach.

Thresholds compare scores, so that a rounded statistic makes other experts fire; scales of int8 and int4 rows are
float16 by their format. Both stay as they are in a model that is cast to bfloat16, and back.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)

F = TypeVar("F", bound=Callable[..., Any])


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def outside_autocast(forward: F) -> F:
    """A module's forward pass, in the type of its own parameters under autocast too.

    A router's choice of experts and the kernels' sums take one type throughout; autocast would give them two.
    """

    @wraps(forward)
    def run(module: nn.Module, x_ND: Tensor, *rest: Any, **named: Any) -> Any:
        device = x_ND.device.type
        if not torch.is_autocast_enabled(device):
            return forward(module, x_ND, *rest, **named)
        first = next(module.parameters(), None)
        with torch.autocast(device, enabled=False):
            return forward(module, x_ND.to(torch.float32 if first is None else first.dtype), *rest, **named)

    return cast(F, run)


class FullStatistics(nn.Module):
    """Whose own buffers, and those of the batch norms in it, are float32 at least whatever it is cast to."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        kept = list(_floating(self, *(child for child in self.children() if isinstance(child, nn.BatchNorm1d))))
        super()._apply(fn, recurse)
        for module, name, before in kept:
            if (now := module.get_buffer(name)).dtype in HALVES:
                module.register_buffer(name, before.to(now.device, torch.float32))
        return self


class FixedFormat(nn.Module):
    """Whose own buffers keep their types whatever it is cast to."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        kept = list(_floating(self))
        super()._apply(fn, recurse)
        for module, name, before in kept:
            if (now := module.get_buffer(name)).dtype != before.dtype:
                module.register_buffer(name, before.to(now.device))
        return self


def _floating(*modules: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                yield module, name, buffer
