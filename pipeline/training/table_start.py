"""What expert tables hold before their first step: the same rows for tables of any precision."""

# D model width, R rows of a piece

import torch

from pipeline.models.language_model import LanguageModel
from pipeline.run import current_run

VALUES_A_PIECE = 2**20


@torch.no_grad()
def draw_tables(model: LanguageModel) -> None:
    """Random rows of N(0, 1 / D) in every table, a piece at a time; of one seed the same for tables of any precision.

    int4 tables start as latents 16 w + a (w alone without an accumulator) and int8 tables at the same values, both
    rounded stochastically, at one scale for all rows.
    """
    width = model.shape.d_model
    rows_a_piece = max(1, VALUES_A_PIECE // width)
    for layer, experts in enumerate(model.expert_layers()):
        for which, table in experts.tables().items():
            name = f"table {which} of block {layer}"
            drawn, rounded = (current_run().generator(f"{what} of {name}") for what in ("start", "rounding"))
            for first in range(0, table.num_rows, rows_a_piece):
                rows = slice(first, min(first + rows_a_piece, table.num_rows))
                weight_RD = torch.randn(rows.stop - first, width, generator=drawn) * width**-0.5
                uniform_RD = torch.rand(weight_RD.shape, generator=rounded)
                table.draw(rows, weight_RD, uniform_RD)
