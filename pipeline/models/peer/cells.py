"""Which experts lie in which cell of the key grid."""

# C cells, E experts, K blocks of cells, P pairs (a token and a cell, or a token and an expert), in order of tokens

import torch
from torch import Tensor, nn

from kernels.cells import CellStarts, experts_of_cells
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.soundness import refuse_where


class CellIndex(nn.Module):
    """Experts in order of their cells, found by where each cell's experts start (kernels/cells/layout.py)."""

    offset_C1: Tensor
    block_start_K: Tensor

    def __init__(self, spec: PeerSpec) -> None:
        super().__init__()
        self.num_experts = spec.num_experts
        cells = spec.num_indexed_cells
        start = torch.arange(cells + 1, dtype=torch.float64) * spec.num_experts / cells
        offset_C1, block_start_K = CellStarts.of(start.round().to(torch.int32))
        self.register_buffer("offset_C1", offset_C1)
        self.register_buffer("block_start_K", block_start_K)
        self.register_load_state_dict_pre_hook(CellIndex.take_form)

    @property
    def stored(self) -> CellStarts:
        """What kernels/cells and kernels/fired_sum read."""
        return CellStarts(self.offset_C1, self.block_start_K)

    def place(self, start_C1: Tensor) -> None:
        """Cell c holds the experts start_C1[c] to start_C1[c + 1] from now on."""
        self.offset_C1, self.block_start_K = CellStarts.of(start_C1)

    def state_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.stored)

    def forward(self, routing: PeerRouting) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of a token and a cell to those of a token and an expert: (expert_P, start_N1, gate_P)."""
        return experts_of_cells(self.stored, routing.cell_P, routing.start_N1, routing.gate_P)

    def cell_of_experts(self) -> Tensor:
        """(E) the cell, row * J + column, that holds each expert."""
        count_C = self.stored.row().diff().long()
        return torch.repeat_interleave(torch.arange(len(count_C), device=count_C.device), count_C)

    def row_and_column_of_experts(self, num_columns: int) -> Tensor:
        """(E, 2) of the cell that holds each expert."""
        cell_E = self.cell_of_experts()
        return torch.stack([cell_E // num_columns, cell_E % num_columns], dim=1)

    def check(self, path: str) -> None:
        """ValueError unless the starts rise from 0 to the number of experts."""
        # In 64 bits: a row of int32 would wrap around where a block's start and an offset add up to more.
        start_C1 = self.stored.at(torch.arange(self.stored.cells + 1))
        wrong_C1 = torch.cat([start_C1[:1] != 0, start_C1.diff() < 0])
        wrong_C1[-1] |= start_C1[-1] != self.num_experts
        takes = f"starts of cells that rise from 0 to {self.num_experts}, the number of experts"
        refuse_where(wrong_C1, start_C1, f"{path}.offset_C1", takes)

    def take_form(self, state: dict[str, Tensor], prefix: str, *_of_the_hook: object) -> None:
        """Makes a state's int32 row of starts, as artifacts held them before, into the tensors of now, and stores
        offsets as wide as the state's, which can then be loaded."""
        start_C1 = state.get(prefix + "cell_start_C1")
        if start_C1 is not None and start_C1.dtype == torch.int32 and start_C1.ndim == 1:
            del state[prefix + "cell_start_C1"]
            state[prefix + "offset_C1"], state[prefix + "block_start_K"] = CellStarts.of(start_C1)
        offset_C1 = state.get(prefix + "offset_C1")
        if offset_C1 is not None and offset_C1.dtype in (torch.uint8, torch.int32):
            self.offset_C1 = self.offset_C1.to(offset_C1.dtype)


def take_forms(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Makes the rows of starts in a model's state into the tensors of now, as `CellIndex.take_form` does."""
    for name, module in model.named_modules():
        if isinstance(module, CellIndex):
            module.take_form(state, f"{name}.")
