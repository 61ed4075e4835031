"""`symbol_table` by the C++ library (native.cpp)."""

# N tokens, D model width, B windows, T tokens of a window, I sub-keys of the rows, J of the columns

import ctypes

import torch
from torch import Tensor

from kernels.axis_bias.native import AxisBiases, axis_biases
from kernels.backends import CpuLibrary, check_on_cpu, pointer
from kernels.jump_router.packed import Packed
from kernels.symbol_table.checks import check_forms, check_tokens, refuse, refuse_value
from kernels.symbol_table.records import Records, records_of
from kernels.symbol_table.tables import SymbolTables

_SIZES = (
    "stride", "coordinates", "num_spoken", "by_circuit", "rules", "literals", "gates", "vocabulary", "places",
)  # fmt: skip


class _Symbols(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in Records._fields[:-1]),
        ("biases", AxisBiases),
        *((name, ctypes.c_int64) for name in _SIZES),
    )


class _Wrong(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("is_one", "at", "value"))


class SymbolLayer:
    """A layer of symbolic experts made ready once, so that a call costs little beside its work.

    Tables are copied: whoever holds it makes it anew when one of them or of the biases was moved or replaced, or one of
    `copied` holds other numbers.
    """

    def __init__(
        self,
        library: CpuLibrary,
        tables: SymbolTables,
        places: int,
        biases: tuple[Tensor, Tensor] | None,
        sizes: tuple[int, int, int],
    ) -> None:
        """`biases` are those of the axes of a router of these `sizes`. ValueError names what does not fit."""
        width = 2 * tables.v_EB.shape[-1]
        check_on_cpu("symbol_table", *(biases or ()))
        check_forms(tables, width)
        records = records_of(tables, places=places)
        if tables.cell_start_C1.shape[0] - 1 != sizes[1] * sizes[2]:
            refuse("cell_start_C1", f"{tables.cell_start_C1.shape[0] - 1} cells", f"those of {sizes[1]} x {sizes[2]}")
        axes, read, copied = axis_biases(biases, sizes, width)
        self.copied: tuple[Tensor, ...] = (*tables, *copied)
        self._records, self._biases, self._width, self._sizes = records, read, width, sizes
        self._run, self._code = library.functions.symbol_table_run, library.code
        self._run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p),
        )
        self._run.restype = None
        kept, rules = records.record_RB.shape[0], records.rule_X.shape[0]
        self._given = _Symbols(
            *map(pointer, records[:-1]), axes, records.record_RB.shape[1],
            tables.index_EK.shape[1], records.spoken_M.shape[0], kept - rules, rules, records.num_literals,
            records.gate_G.shape[0], tables.member_LV.shape[1], places,
        )  # fmt: skip

    def __call__(self, x_ND: Tensor, packed: Packed, tokens_BT: Tensor) -> Tensor:
        """(N, D) float32; x is that too, and contiguous. ValueError for a token out of range where literals read it."""
        if x_ND.shape != (packed.tokens, self._width) or packed.sizes != self._sizes:
            refuse(
                "x_ND",
                f"shape {tuple(x_ND.shape)} for {packed.tokens} tokens of a router of sizes {packed.sizes}",
                f"their states, {self._width} wide, and a router of {self._sizes}",
            )
        if not tokens_BT.is_contiguous():
            tokens_BT = tokens_BT.contiguous()
        check_tokens(tokens_BT, packed.tokens)
        y_ND, wrong = torch.empty_like(x_ND), _Wrong()
        self._run(
            ctypes.byref(self._given), x_ND.data_ptr(), packed.words.data_ptr(), packed.tokens, packed.pairs,
            packed.keys, tokens_BT.data_ptr(), tokens_BT.shape[1], self._code, torch.get_num_threads(), y_ND.data_ptr(),
            ctypes.byref(wrong),
        )  # fmt: skip
        if wrong.is_one:
            refuse_value("tokens_BT", wrong.at, wrong.value, self._given.vocabulary - 1)
        return y_ND
