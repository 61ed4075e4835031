"""`jump_router` by the C++ library (native.cpp)."""

# N tokens, D model width, H heads, I sub-keys of the rows, J of the columns, S scores, R features, X either

import ctypes

import torch
from torch import Tensor

from kernels.backends import CpuLibrary, check_on_cpu, pointer
from kernels.errors import Mistake
from kernels.jump_router.checks import check_statistics, check_weight, refuse
from kernels.jump_router.packed import Packed
from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows

FEW = 16
"""Of fewer tokens than this the scores or features are made in the same call; of more BLAS makes them."""


_ROWS = (*SparseRows._fields, "index_KS", "coefficient_KS")
_LIMITS = ("row_cut_H", "row_slack_H", "column_cut_H", "column_slack_H", "threshold_H")


class _Router(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_LIMITS, *_ROWS, "weight_XD")),
        *((name, ctypes.c_int64) for name in ("width", "read", "heads", "rows", "columns", "terms")),
    )


class _Outcome(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("pairs", "keys", "words", "wrong"))


class Router:
    """A router made ready once: its tensors are checked and found, so that a call costs little beside its work.

    It reads the tensors where they lie, those of `copied` excepted: whoever holds it makes it anew when one of them was
    moved or replaced, or one of `copied` holds other numbers.
    """

    def __init__(
        self,
        library: CpuLibrary,
        weight_XD: Tensor | None,
        reads: int,
        rows: SparseRows | None,
        statistics: AxisStatistics,
        rule: Rule,
    ) -> None:
        """`weight_XD` makes the scores, or the features that `rows` are sums of; without one they are given, `reads`
        of them. All on the CPU. ValueError for what is not float32, or does not fit."""
        check_on_cpu("jump_router", weight_XD, *(rows or ()), *statistics)
        scores = check_statistics(reads, torch.float32, rows, statistics, rule)
        self.copied: tuple[Tensor, ...] = (*statistics,)
        """Of the weight and the statistics. `rows` are copies already."""
        if weight_XD is not None:
            check_weight(weight_XD, reads)
            if not weight_XD.is_contiguous():
                self.copied = (*self.copied, weight_XD)
            weight_XD = weight_XD.contiguous()
        limits = _limits(statistics, rule)
        # What is behind the addresses must live as long as they do.
        turned = () if rows is None else (rows.index_SK.T.contiguous(), rows.coefficient_SK.T.contiguous())
        self._tensors = weight_XD, rows, turned, limits
        self._weight_XD, self._run, self._code = weight_XD, library.functions.jump_router_run, library.code
        self._run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p),
        )
        self._run.restype = None
        if rows is not None and not library.functions.jump_router_rows_are_sound(
            pointer(rows.index_SK), ctypes.c_int64(rows.index_SK.numel()), ctypes.c_int64(reads)
        ):
            refuse("index")
        heads = statistics.threshold_H.shape[0]
        columns = scores // heads - rule.num_rows
        self._sizes = heads, rule.num_rows, columns
        pointers = [*map(pointer, limits), *(map(pointer, (*rows, *turned)) if rows else len(_ROWS) * [None])]
        sizes = reads, heads, rule.num_rows, columns, 0 if rows is None else rows.index_SK.shape[1]
        self._given = _Router(*pointers, None, 0, *sizes)
        self._of_states = self._given
        if weight_XD is not None:
            self._of_states = _Router(*pointers, pointer(weight_XD), weight_XD.shape[1], *sizes)
        self.reads_states = weight_XD is not None
        """Whether it makes scores or features itself (`route`), or takes them (`route_read`)."""
        self._words_a_token = 64.0
        """A guess, which grows to what calls need."""

    def route(self, x_ND: Tensor) -> Packed:
        """From the states, float32 and contiguous. ValueError for scores that are not finite."""
        assert self._weight_XD is not None
        tokens, width = x_ND.shape
        if tokens < FEW and width == self._weight_XD.shape[1]:
            return self._packed(self._of_states, x_ND, tokens)
        return self._packed(self._given, torch.mm(self._weight_XD, x_ND.t()), tokens)

    def route_read(self, read_XN: Tensor) -> Packed:
        """From the scores or features themselves, float32 and contiguous."""
        reads, tokens = read_XN.shape
        assert reads == self._given.read
        return self._packed(self._given, read_XN, tokens)

    def _packed(self, router: _Router, x: Tensor, tokens: int) -> Packed:
        if x.dtype != torch.float32:  # autocast makes products of another type, which C++ would read as float32
            raise Mistake(f"jump_router got states, scores or features of {x.dtype}; it takes torch.float32 in C++")
        outcome, x_at = _Outcome(), x.data_ptr()
        capacity = int(self._words_a_token * tokens) + 64
        while True:
            words = torch.empty(capacity, dtype=torch.int64)
            self._run(
                ctypes.byref(router), x_at, tokens, self._code, torch.get_num_threads(), words.data_ptr(), capacity,
                ctypes.byref(outcome),
            )  # fmt: skip
            if outcome.wrong:
                refuse("score")
            if outcome.words <= capacity:
                return Packed(words, tokens, outcome.pairs, outcome.keys, self._sizes)
            self._words_a_token = max(self._words_a_token, 1.25 * outcome.words / tokens)
            capacity = outcome.words


def _limits(statistics: AxisStatistics, rule: Rule) -> tuple[Tensor, ...]:
    """As _LIMITS names them: an axis's scores pass from `cut` on, and from the best less `slack`."""
    row_H, column_H = (torch.sqrt(var_H + rule.epsilon) for var_H in (statistics.row_var_H, statistics.column_var_H))
    return (
        statistics.row_mean_H + rule.deviations * row_H, rule.tie_margin * row_H,
        statistics.column_mean_H + rule.deviations * column_H, rule.tie_margin * column_H,
        statistics.threshold_H.contiguous(),
    )  # fmt: skip


def forward(
    library: CpuLibrary, read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule
) -> Fired:
    """Of scores or features once. All are contiguous and float32."""
    return Router(library, None, read_XN.shape[0], rows, statistics, rule).route_read(read_XN).fired
