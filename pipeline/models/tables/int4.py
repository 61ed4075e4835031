"""Rows of nibbles; while they train, with a second plane that accumulates gradients and that nothing else reads."""

# D model width, E experts, R rows that are asked for, B bytes of a packed row, G groups of a row with a scale each,
# F values of a group

import torch
from torch import Tensor

from kernels.packing import latent, pack_int4, split_latent, unpack_int4
from kernels.sr_update import NibbleTable
from kernels.sr_update.row_rule import INT4, NIBBLES
from pipeline.models.contract import bytes_of
from pipeline.models.number_types import FixedFormat
from pipeline.models.soundness import NOT_NEGATIVE, SCALE, Rule, takes
from pipeline.models.tables.rounding import INT4_MOST, quantize_int4, rows_below_smallest_scale
from pipeline.models.tables.row_steps import first_latents, stepped


def _has_least_nibble(packed_EB: Tensor) -> Tensor:
    """Whether either nibble of a byte is -8, which no rounding makes: rows are symmetric."""
    return ((packed_EB & 0x0F) == 8) | ((packed_EB >> 4) == 8)


_NIBBLES = Rule(_has_least_nibble, f"bytes of two nibbles from -{INT4_MOST} to {INT4_MOST}, none of -8")


@takes(lambda table: {"weight_EB": _NIBBLES, "scale_E": SCALE, "scale_EG": SCALE, "moment_E": NOT_NEGATIVE})
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
    def num_rows(self) -> int:
        return len(self.weight_EB)

    @property
    def stored(self) -> Tensor:
        return self.weight_EB

    @property
    def scales(self) -> Tensor:
        return self.scale_E if self.groups == 1 else self.scale_EG

    @property
    def step_EG(self) -> Tensor:
        """(E, G) scales, for any number of groups."""
        return self.scale_E[:, None] if self.groups == 1 else self.scale_EG

    def rows(self, row_R: Tensor) -> Tensor:
        """w times the step."""
        value_RGF = unpack_int4(self.weight_EB[row_R].unflatten(1, (self.groups, -1))).float()
        return (value_RGF * self.step_EG[row_R].float()[:, :, None]).flatten(1)

    def latent_rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows of the int8 view 16 w + a, an exact copy of the state."""
        q_RD = latent(self.weight_EB[row_R], self.accumulator_EB[row_R])
        return q_RD.float() * (self.scale_E[row_R].float()[:, None] / 16)

    def latents(self, row_R: Tensor) -> Tensor:
        """(R, D) int8: 16 w + a, or w alone without an accumulator."""
        if self.has_accumulator:
            return latent(self.weight_EB[row_R], self.accumulator_EB[row_R])
        return unpack_int4(self.weight_EB[row_R])

    def put_latents(self, row_R: Tensor | slice, q_RD: Tensor) -> None:
        """Writes what `latents` reads."""
        if self.has_accumulator:
            self.weight_EB[row_R], self.accumulator_EB[row_R] = split_latent(q_RD)
        else:
            self.weight_EB[row_R] = pack_int4(q_RD)

    def set(self, value_ED: Tensor, scale: Tensor) -> None:
        """What `quantize_int4` gives for as many groups."""
        self.weight_EB.copy_(pack_int4(value_ED.unflatten(1, (self.groups, -1))).flatten(1))
        self.step_EG.copy_(scale.view(-1, self.groups))

    def take(self, rows_ED: Tensor, clips: int = 1) -> None:
        self.set(*quantize_int4(rows_ED, clips, self.groups))
        if self.has_accumulator:
            self.accumulator_EB.zero_()  # it belonged to the old rows, at their scale

    def rows_below_smallest_scale(self, rows_ED: Tensor) -> int:
        return rows_below_smallest_scale(rows_ED, INT4_MOST, self.groups)

    def draw(self, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
        """As latents 16 w + a; without an accumulator w alone."""
        q_RD, scale = first_latents(weight_RD, uniform_RD)
        weight_RB, accumulator_RB = split_latent(q_RD)
        self.weight_EB[rows] = weight_RB.to(self.weight_EB)
        self.step_EG[rows] = scale
        if self.has_accumulator:
            self.accumulator_EB[rows] = accumulator_RB.to(self.accumulator_EB)

    def move(self, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
        """On the grid of both planes; without an accumulator on that of w. Of one scale a row."""
        grid = NIBBLES if self.has_accumulator else INT4
        row_T, q_TD = stepped(
            grid, self.latents(row_R), self.scale_E, row_R, normal_RD, uniform_RD, learning_rate
        )  # fmt: skip
        self.put_latents(row_T, q_TD)
        return len(row_R) - len(row_T)

    def state(self) -> NibbleTable:
        return NibbleTable(self.weight_EB, self.accumulator_EB, self.scale_E, self.moment_E)

    def state_bytes(self) -> int:
        return bytes_of(self)
