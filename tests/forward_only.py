"""What an expert layer needs beside its forward pass, for layers of tests that nobody asks more of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.models.contract import ExpertLayer, Pairs, Table


class ForwardOnly(ExpertLayer):
    def pairs(self, x_ND: Tensor, routing: Any) -> Pairs:
        raise NotImplementedError

    def tables(self) -> Mapping[str, Table]:
        return {}

    def state_bytes(self) -> int:
        return 0

    def check(self, path: str) -> None:
        """It has nothing that could be out of order."""
