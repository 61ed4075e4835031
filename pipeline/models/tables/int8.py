"""Rows of int8 with one float16 scale each."""

# D model width, E experts, R rows that are asked for

import torch
from torch import Tensor

from pipeline.models.number_types import FixedFormat
from pipeline.models.tables.floats import bytes_of


class Int8Table(FixedFormat):
    value_ED: Tensor
    scale_E: Tensor

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=torch.int8))
        self.register_buffer("scale_E", torch.ones(num_rows, dtype=torch.float16))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.value_ED

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows."""
        return self.value_ED[row_R].float() * self.scale_E[row_R].float()[:, None]

    def state_bytes(self) -> int:
        return bytes_of(self)
