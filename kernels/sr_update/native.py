"""One step of an int4 table by the C++ library (native.cpp)."""

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer
from kernels.sr_update.constants import CLIP, GROWTH, HIGHEST, LOWEST, MOMENT_DECAY

# T tokens, D model width, E table rows, R touched rows, P pairs (a row and a token), B bytes of a packed row


def sr_update(
    library: CpuLibrary,
    weight_EB: Tensor,
    accumulator_EB: Tensor,
    scale_E: Tensor,
    moment_E: Tensor,
    source_TD: Tensor,
    row_R: Tensor,
    start_R1: Tensor,
    token_P: Tensor,
    weight_P: Tensor,
    learning_rate: float,
    stream: int,
    step: int,
) -> Tensor:
    """(3) int64: values of w that changed, rows whose scale grew, rows refused. The table is updated in place."""
    counts = torch.zeros(3, dtype=torch.int64)
    constants = MOMENT_DECAY, 1 - MOMENT_DECAY, CLIP, GROWTH, LOWEST, HIGHEST
    rule = (ctypes.c_float(value) for value in (learning_rate, *constants))
    library.functions.sr_update(
        pointer(weight_EB), pointer(accumulator_EB), pointer(scale_E), pointer(moment_E), pointer(source_TD),
        pointer(row_R), pointer(start_R1), pointer(token_P), pointer(weight_P), ctypes.c_int64(len(row_R)),
        ctypes.c_int64(source_TD.shape[1]), *rule, ctypes.c_uint64(stream), ctypes.c_uint32(step), library.code,
        ctypes.c_int32(torch.get_num_threads()), pointer(counts),
    )  # fmt: skip
    return counts
