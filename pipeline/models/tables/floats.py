"""Rows of float32 or bfloat16 that no autograd leaf holds."""

# D model width, E experts, R rows that are asked for

import torch
from torch import Tensor, nn

from pipeline.models.number_types import FixedFormat


def bytes_of(module: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in module.state_dict().values())


class FloatTable(FixedFormat):
    value_ED: Tensor
    scale_E = None
    """Floats have none."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("value_ED", torch.zeros(num_rows, width, dtype=dtype))

    @property
    def stored(self) -> Tensor:
        """What kernels/expert_sum reads."""
        return self.value_ED

    def rows(self, row_R: Tensor) -> Tensor:
        """(R, D) float32 rows."""
        return self.value_ED[row_R].float()

    def state_bytes(self) -> int:
        return bytes_of(self)
