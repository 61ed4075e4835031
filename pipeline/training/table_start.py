"""What expert tables hold before their first step: the same rows for tables of any precision."""

# D model width, E experts, R rows of a piece, B bytes of a packed row

import torch
from torch import Tensor, nn

from kernels.packing import split_latent
from kernels.sr_update.row_rule import NIBBLES
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.tables.experts import QuantizedExperts, Table
from pipeline.models.tables.floats import FloatTable
from pipeline.models.tables.int4 import Int4Table
from pipeline.models.tables.int8 import Int8Table
from pipeline.run import current_run

CLIP_DEVIATIONS = 2.7
"""Where int4 clips a row of normal weights: near the least squared error of 15 levels (research prototype)."""

VALUES_A_PIECE = 2**20


@torch.no_grad()
def draw_tables(model: LanguageModel) -> None:
    """Random rows of N(0, 1 / D) in every table, a piece at a time; of one seed the same for tables of any precision.

    int4 tables start as latents 16 w + a (w alone without an accumulator) and int8 tables at the same values, both
    rounded stochastically, at one scale for all rows.
    """
    width = model.shape.d_model
    for layer, block in enumerate(model.blocks()):
        experts = block.moe
        assert isinstance(experts, PeerExperts | QuantizedExperts)
        for which, table in (("u", experts.u), ("v", experts.v)):
            name = f"table {which} of block {layer}"
            drawn, rounded = (current_run().generator(f"{what} of {name}") for what in ("start", "rounding"))
            for first in range(0, experts.spec.num_experts, rows_a_piece := max(1, VALUES_A_PIECE // width)):
                rows = slice(first, min(first + rows_a_piece, experts.spec.num_experts))
                weight_RD = torch.randn(rows.stop - first, width, generator=drawn) * width**-0.5
                uniform_RD = torch.rand(weight_RD.shape, generator=rounded)
                write_start(table, rows, weight_RD, uniform_RD)


def write_start(table: Table | nn.Parameter, rows: slice, weight_RD: Tensor, uniform_RD: Tensor) -> None:
    """Writes these weights into rows of a table."""
    scale = torch.tensor(CLIP_DEVIATIONS * weight_RD.shape[1] ** -0.5 / 7.5).half()
    q_RD = torch.floor(weight_RD * (NIBBLES.units / scale.float()) + uniform_RD)
    q_RD = q_RD.clamp(NIBBLES.lowest, NIBBLES.highest).to(torch.int8)
    match table:
        case nn.Parameter():
            table.data[rows] = weight_RD.to(table)
        case FloatTable():
            table.value_ED[rows] = weight_RD.to(table.value_ED)
        case Int8Table():
            table.value_ED[rows] = q_RD.to(table.value_ED)
            table.scale_E[rows] = scale / NIBBLES.units
        case Int4Table():
            weight_RB, accumulator_RB = split_latent(q_RD)
            table.weight_EB[rows] = weight_RB.to(table.weight_EB)
            table.scale_E[rows] = scale
            if table.has_accumulator:
                table.accumulator_EB[rows] = accumulator_RB.to(table.accumulator_EB)
