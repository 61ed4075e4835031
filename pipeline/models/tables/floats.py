"""Rows of float32 or bfloat16 that no autograd leaf holds."""

# D model width, E experts, R rows that are asked for

import torch
from torch import Tensor

from kernels.sr_update.row_rule import to_bfloat16
from pipeline.models.contract import bytes_of
from pipeline.models.number_types import FixedFormat


class FloatTable(FixedFormat):
    value_ED: Tensor

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=dtype))

    @property
    def num_rows(self) -> int:
        return len(self.value_ED)

    @property
    def stored(self) -> Tensor:
        return self.value_ED

    @property
    def scales(self) -> None:
        return None

    def rows(self, row_R: Tensor) -> Tensor:
        return self.value_ED[row_R].float()

    def take(self, rows_ED: Tensor, clips: int = 1) -> None:
        self.value_ED.copy_(rows_ED)

    def rows_below_smallest_scale(self, rows_ED: Tensor) -> int:
        return 0

    def draw(self, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
        self.value_ED[rows] = weight_RD.to(self.value_ED)

    def move(self, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
        moved_RD = self.value_ED[row_R].float() - learning_rate * normal_RD
        is_float32 = self.value_ED.dtype == torch.float32
        self.value_ED[row_R] = moved_RD if is_float32 else to_bfloat16(moved_RD, uniform_RD)
        return 0

    def state_bytes(self) -> int:
        return bytes_of(self)
