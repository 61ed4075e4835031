"""A float parameter seen as a table, so that what speaks of tables speaks of it too."""

# D model width, E experts, R rows that are asked for

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pipeline.models.number_types import at_least_float32


class ParameterTable:
    """A view: it holds nothing of its own."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    @property
    def num_rows(self) -> int:
        return len(self.parameter)

    @property
    def stored(self) -> Tensor:
        return self.parameter

    @property
    def scales(self) -> None:
        return None

    def rows(self, row_R: Tensor) -> Tensor:
        return at_least_float32(self.parameter.detach()[row_R])

    @torch.no_grad()
    def take(self, rows_ED: Tensor, clips: int = 1) -> None:
        self.parameter.copy_(rows_ED)

    def rows_below_smallest_scale(self, rows_ED: Tensor) -> int:
        return 0

    def draw(self, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
        self.parameter.data[rows] = weight_RD.to(self.parameter)

    @torch.no_grad()
    def move(self, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
        self.parameter[row_R] -= learning_rate * normal_RD
        return 0

    def parameters(self) -> Iterable[nn.Parameter]:
        return (self.parameter,)

    def state_bytes(self) -> int:
        return self.parameter.numel() * self.parameter.element_size()
