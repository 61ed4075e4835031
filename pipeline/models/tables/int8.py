"""Rows of int8 with one float16 scale each."""

# D model width, E experts, R rows that are asked for

import torch
from torch import Tensor

from kernels.sr_update.row_rule import INT8, NIBBLES
from pipeline.models.contract import bytes_of
from pipeline.models.number_types import FixedFormat
from pipeline.models.soundness import SCALE, Rule, takes
from pipeline.models.tables.rounding import INT8_MOST, quantize_int8, rows_below_smallest_scale
from pipeline.models.tables.row_steps import first_latents, stepped

_INT8 = Rule(lambda value_X: value_X < -INT8_MOST, f"values from -{INT8_MOST} to {INT8_MOST}")


@takes(lambda table: {"value_ED": _INT8, "scale_E": SCALE})
class Int8Table(FixedFormat):
    value_ED: Tensor
    scale_E: Tensor

    def __init__(self, num_rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=torch.int8))
        self.register_buffer("scale_E", torch.ones(num_rows, dtype=torch.float16))

    @property
    def num_rows(self) -> int:
        return len(self.value_ED)

    @property
    def stored(self) -> Tensor:
        return self.value_ED

    @property
    def scales(self) -> Tensor:
        return self.scale_E

    def rows(self, row_R: Tensor) -> Tensor:
        return self.value_ED[row_R].float() * self.scale_E[row_R].float()[:, None]

    def take(self, rows_ED: Tensor, clips: int = 1) -> None:
        """The largest absolute value of a row at 127, whatever `clips`: at one byte it is near the best."""
        value_ED, scale_E = quantize_int8(rows_ED)
        self.value_ED.copy_(value_ED)
        self.scale_E.copy_(scale_E)

    def rows_below_smallest_scale(self, rows_ED: Tensor) -> int:
        return rows_below_smallest_scale(rows_ED, INT8_MOST, 1)

    def draw(self, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
        """At the latents that an int4 table starts with."""
        q_RD, scale = first_latents(weight_RD, uniform_RD)
        self.value_ED[rows] = q_RD.to(self.value_ED)
        self.scale_E[rows] = scale / NIBBLES.units

    def move(self, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
        row_T, q_TD = stepped(
            INT8, self.value_ED[row_R], self.scale_E, row_R, normal_RD, uniform_RD, learning_rate
        )  # fmt: skip
        self.value_ED[row_T] = q_TD
        return len(row_R) - len(row_T)

    def state_bytes(self) -> int:
        return bytes_of(self)
