"""Arms beside int4 with an accumulator: the same row rule on float32, bfloat16, int8, and on int4 without its parts.

For studies of models that fit easily: the gradients of the touched rows are made, and moments lie beside the model.
"""

# D model width, E experts, R touched rows

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kernels.packing import latent, pack_int4, split_latent, unpack_int4
from kernels.sr_update import row_gradients
from kernels.sr_update.row_rule import INT4, INT8, NIBBLES, normalised, step_on, to_bfloat16
from pipeline.models.language_model import LanguageModel
from pipeline.models.tables.experts import Table
from pipeline.models.tables.floats import FloatTable
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.run import current_run
from pipeline.training.table_updates import expert_layers, forget_gradients, gradients_are_finite

Rounding = Literal["stochastic", "nearest"]


class ArmTables:
    """The tables of a model that learn by the row rule on their own grid, with float32 moments."""

    def __init__(self, model: LanguageModel, *, peak_rate: float, rounding: Rounding = "stochastic") -> None:
        self.model, self.peak_rate, self.rounding = model, peak_rate, rounding
        self.moments: dict[Table, Tensor] = {}
        for experts in expert_layers(model):
            experts.trains = True
            self.moments |= {
                table: torch.zeros(experts.spec.num_experts, device=experts.bias.device)
                for table in (experts.u, experts.v)
            }

    def finite(self) -> bool:
        return gradients_are_finite(self.model)

    def skip(self) -> None:
        forget_gradients(self.model)

    @torch.no_grad()
    def step(self, step: int, rate_share: float) -> Mapping[str, float]:
        refused = 0
        for layer, experts in enumerate(expert_layers(self.model)):
            assert experts.gradients is not None
            for which, table, gradients in zip("uv", (experts.u, experts.v), experts.gradients, strict=True):
                row_R = gradients.row_R
                normal_RD, moment_R = normalised(row_gradients(gradients), self.moments[table][row_R])
                takes_R = torch.isfinite(moment_R)  # a row whose gradient overflows stays, as in sr_update
                refused += int((~takes_R).sum())
                row_R, normal_RD, moment_R = row_R[takes_R], normal_RD[takes_R], moment_R[takes_R]
                self.moments[table][row_R] = moment_R
                # Of the step and the table alone, so that a step draws the same whatever came before it.
                generator = current_run().generator(f"rounding of table {which} of block {layer} at step {step}")
                uniform_RD = torch.rand(normal_RD.shape, generator=generator).to(normal_RD)
                if self.rounding == "nearest":
                    uniform_RD.fill_(0.5)
                refused += _move(table, row_R, normal_RD, uniform_RD, self.peak_rate * rate_share)
            experts.gradients = None
        return {"rows_refused": float(refused)}


def _move(table: Table, row_R: Tensor, normal_RD: Tensor, uniform_RD: Tensor, learning_rate: float) -> int:
    """One step of these rows of a table; how many stayed as they were, their scale leaving float16."""
    match table:
        case FloatTable():
            moved_RD = table.value_ED[row_R].float() - learning_rate * normal_RD
            is_float32 = table.value_ED.dtype == torch.float32
            table.value_ED[row_R] = moved_RD if is_float32 else to_bfloat16(moved_RD, uniform_RD)
            return 0
        case Int8Table():
            grid, value_RD = INT8, table.value_ED[row_R]
        case Int4Table() if table.has_accumulator:
            grid, value_RD = NIBBLES, latent(table.weight_EB[row_R], table.accumulator_EB[row_R])
        case Int4Table():
            grid, value_RD = INT4, unpack_int4(table.weight_EB[row_R])
    q_RD, scale_R, _ = step_on(grid, value_RD.float(), table.scale_E[row_R], normal_RD, uniform_RD, learning_rate)
    takes_R = torch.isfinite(scale_R)
    row_R, q_RD = row_R[takes_R], q_RD[takes_R]
    table.scale_E[row_R] = scale_R[takes_R]
    match table:
        case Int8Table():
            table.value_ED[row_R] = q_RD
        case Int4Table() if table.has_accumulator:
            table.weight_EB[row_R], table.accumulator_EB[row_R] = split_latent(q_RD)
        case Int4Table():
            table.weight_EB[row_R] = pack_int4(q_RD)
    return int((~takes_R).sum())
