"""Arms beside int4 with an accumulator: the same row rule on float32, bfloat16, int8, and on int4 without its parts.

For studies of models that fit easily: the gradients of the touched rows are made, and moments lie beside the model.
"""

# D model width, E experts, R touched rows

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kernels.sr_update import row_gradients
from kernels.sr_update.row_rule import normalised
from pipeline.models.contract import Table
from pipeline.models.language_model import LanguageModel
from pipeline.run import current_run
from pipeline.training.table_updates import forget_gradients, gradients_are_finite, table_layers

Rounding = Literal["stochastic", "nearest"]


class ArmTables:
    """The tables of a model that learn by the row rule on their own grid, with float32 moments."""

    def __init__(self, model: LanguageModel, *, peak_rate: float, rounding: Rounding = "stochastic") -> None:
        self.model, self.peak_rate, self.rounding = model, peak_rate, rounding
        self.moments: dict[Table, Tensor] = {}
        for experts in table_layers(model):
            experts.trains = True
            self.moments |= {
                table: torch.zeros(table.num_rows, device=experts.bias.device) for table in experts.tables().values()
            }

    def finite(self) -> bool:
        return gradients_are_finite(self.model)

    def skip(self) -> None:
        forget_gradients(self.model)

    @torch.no_grad()
    def step(self, step: int, rate_share: float) -> Mapping[str, float]:
        refused = 0
        for layer, experts in enumerate(table_layers(self.model)):
            assert experts.gradients is not None
            for (which, table), gradients in zip(experts.tables().items(), experts.gradients, strict=True):
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
                refused += table.move(row_R, normal_RD, uniform_RD, self.peak_rate * rate_share)
            experts.gradients = None
        return {"rows_refused": float(refused)}
