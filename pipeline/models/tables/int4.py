"""Rows of nibbles; while they train, with a second plane that accumulates gradients and that nothing else reads."""

# D model width, E experts, R rows that are asked for, B bytes of a packed row, G groups of a row with a scale each,
# F values of a group

import torch
from torch import Tensor

from kernels.packing import latent, pack_int4, unpack_int4
from kernels.sr_update import NibbleTable
from pipeline.models.number_types import FixedFormat
from pipeline.models.tables.floats import bytes_of


class Int4Table(FixedFormat):
    """Rows of nibbles with one scale a row, or (for inference alone) a scale for each of its groups of values.

    A row of G groups lies as G rows of width D / G would, each packed by itself.
    """

    weight_EB: Tensor
    scale_E: Tensor
    """Of one scale a row."""
    scale_EG: Tensor
    """Of more."""
    accumulator_EB: Tensor
    moment_E: Tensor

    def __init__(self, num_rows: int, width: int, *, accumulator: bool, groups: int = 1) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"int4 rows hold an even number of values; d_model is {width}")
        if width // 2 % groups:
            raise ValueError(
                f"scale_groups={groups} does not divide d_model / 2 = {width // 2}, and int4 groups are of one even "
                "width; use a divisor of it"
            )
        assert groups == 1 or not accumulator
        self.groups, self.has_accumulator = groups, accumulator
        self.register_buffer("weight_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
        name, shape = ("scale_E", (num_rows,)) if groups == 1 else ("scale_EG", (num_rows, groups))
        self.register_buffer(name, torch.ones(shape, dtype=torch.float16))
        if accumulator:
            self.register_buffer("accumulator_EB", torch.zeros(num_rows, width // 2, dtype=torch.uint8))
            self.register_buffer("moment_E", torch.zeros(num_rows))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.weight_EB

    @property
    def step_EG(self) -> Tensor:
        """(E, G) scales, for any number of groups."""
        return self.scale_E[:, None] if self.groups == 1 else self.scale_EG

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of what the forward pass reads: w times the step."""
        value_RGF = unpack_int4(self.weight_EB[row_R].unflatten(1, (self.groups, -1))).float()
        return (value_RGF * self.step_EG[row_R].float()[:, :, None]).flatten(1)

    def latent_rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of the int8 view 16 w + a, an exact copy of the state."""
        q_RD = latent(self.weight_EB[row_R], self.accumulator_EB[row_R])
        return q_RD.float() * (self.scale_E[row_R].float()[:, None] / 16)

    def set(self, value_ED: Tensor, scale: Tensor) -> None:
        """What `quantize_int4` gives for as many groups."""
        self.weight_EB.copy_(pack_int4(value_ED.unflatten(1, (self.groups, -1))).flatten(1))
        self.step_EG.copy_(scale.view(-1, self.groups))

    def state(self) -> NibbleTable:
        return NibbleTable(self.weight_EB, self.accumulator_EB, self.scale_E, self.moment_E)

    def state_bytes(self) -> int:
        return bytes_of(self)
