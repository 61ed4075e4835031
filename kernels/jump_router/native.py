"""`jump_router` by the C++ library (native.cpp)."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, S scores, P pairs, Q scores that pass

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, pointer
from kernels.jump_router.checks import refuse
from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows

_WRONG = ("score", "index", "begins")
"""As native.cpp numbers what is wrong, from 1."""


class _Router(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*AxisStatistics._fields, *SparseRows._fields)),
        *((name, ctypes.c_void_p) for name in ("read", "scratch", "key_start", "start")),
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "rows", "columns", "features", "terms")),
        *((name, ctypes.c_float) for name in ("epsilon", "deviations", "margin")),
        *((name, ctypes.c_int64) for name in ("keys", "pairs")),
    )


def forward(
    library: CpuLibrary, read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule
) -> Fired:
    """All are contiguous and float32."""
    heads, (features, tokens) = statistics.threshold_H.shape[0], read_XN.shape
    scores, terms = (features, 0) if rows is None else rows.index_SK.shape
    scratch = torch.empty(tokens * (3 * scores + 2 * heads))
    key_start_N1, start_N1 = torch.empty(tokens + 1, dtype=torch.int64), torch.empty(tokens + 1, dtype=torch.int64)
    router = _Router(
        *[number.data_ptr() for number in statistics],
        *((None, None, None) if rows is None else [part.data_ptr() for part in rows]),
        read_XN.data_ptr(), scratch.data_ptr(), key_start_N1.data_ptr(), start_N1.data_ptr(),
        tokens, heads, rule.num_rows, scores // heads - rule.num_rows, features, terms, rule.epsilon, rule.deviations,
        rule.tie_margin,
    )  # fmt: skip
    threads = ctypes.c_int32(torch.get_num_threads())
    wrong = library.functions.jump_router_pass(ctypes.byref(router), library.code, threads)
    if wrong:
        refuse(_WRONG[wrong - 1])
    pairs, keys = router.pairs, router.keys
    cell_P, gate_P = torch.empty(pairs, dtype=torch.int64), torch.empty(pairs)
    score_Q, log_gate_Q, gate_Q = torch.empty(keys, dtype=torch.int32), torch.empty(keys), torch.empty(keys)
    library.functions.jump_router_fill(
        ctypes.byref(router), threads, pointer(cell_P), pointer(gate_P), pointer(score_Q), pointer(log_gate_Q),
        pointer(gate_Q),
    )  # fmt: skip
    return Fired(cell_P, start_N1, gate_P, score_Q, key_start_N1, log_gate_Q, gate_Q)


def axis_bias(
    library: CpuLibrary,
    score_Q: Tensor,
    gate_Q: Tensor,
    key_start_N1: Tensor,
    heads: int,
    row_ID: Tensor,
    column_JD: Tensor,
) -> Tensor:
    """(N, D)"""
    tokens, (rows, width) = key_start_N1.shape[0] - 1, row_ID.shape
    y_ND = torch.empty(tokens, width)
    wrong = library.functions.jump_router_bias(
        pointer(score_Q), pointer(gate_Q), pointer(key_start_N1), pointer(row_ID), pointer(column_JD),
        *map(ctypes.c_int64, (tokens, score_Q.shape[0], heads, rows, column_JD.shape[0], width)), library.code,
        ctypes.c_int32(torch.get_num_threads()), pointer(y_ND),
    )  # fmt: skip
    if wrong:
        refuse(_WRONG[wrong - 1])
    return y_ND
