"""`fired_sum` by the C++ library (native.cpp)."""

# N tokens, D model width, E experts, B stored values of a row, C cells, I sub-keys of the rows, J of the columns

import ctypes

import torch
from torch import Tensor

from kernels.activations import ACTIVATIONS
from kernels.axis_bias.native import AxisBiases, axis_biases
from kernels.backends import CpuLibrary, check_on_cpu, pointer
from kernels.cells.layout import CellStarts
from kernels.cells.native import Starts
from kernels.errors import Mistake
from kernels.expert_sum.checks import check_tables
from kernels.expert_sum.native import PRECISIONS
from kernels.jump_router.packed import Packed

ExpertTable = tuple[Tensor, Tensor | None]
"""(E, B) rows as expert_sum takes them, and the (E) scales of those that have some."""

_ACTIVATIONS = ("relu2", "relu", "gelu", "silu")
"""As native.cpp numbers them."""
assert set(_ACTIVATIONS) == set(ACTIVATIONS)


class _Layer(ctypes.Structure):
    _fields_ = (
        ("cell_starts", Starts),
        *((name, ctypes.c_void_p) for name in ("u_EB", "v_EB", "u_scale_E", "v_scale_E", "bias_E")),
        ("biases", AxisBiases),
        *((name, ctypes.c_int64) for name in ("precision", "activation")),
    )


class ExpertLayer:
    """A layer's experts made ready once: tables are checked and found, so that a call costs little beside its work.

    It reads the tensors where they lie, those of `copied` excepted: whoever holds it makes it anew when one of them was
    moved or replaced, or one of `copied` holds other numbers.
    """

    def __init__(
        self,
        library: CpuLibrary,
        cell_starts: CellStarts,
        u: ExpertTable,
        bias_E: Tensor,
        v: ExpertTable,
        act: str,
        biases: tuple[Tensor, Tensor] | None,
        sizes: tuple[int, int, int],
    ) -> None:
        """`biases` are those of the axes of a router of these `sizes` (heads, rows, columns). ValueError for what does
        not fit, and for cells that do not rise from 0 to the number of experts."""
        check_on_cpu("fired_sum", *cell_starts, *u, bias_E, *v, *(biases or ()))
        width = u[0].shape[-1] * (2 if u[0].dtype == torch.uint8 else 1)
        check_tables(width, torch.float32, *u, bias_E, *v)
        if bias_E.dtype != torch.float32:
            raise Mistake(f"fired_sum got bias_E of {bias_E.dtype}; it takes torch.float32")
        _check_cells(cell_starts, sizes[1] * sizes[2], bias_E.shape[0])
        axes, read, self.copied = axis_biases(biases, sizes, width)
        self._tensors = cell_starts, u, bias_E, v, read
        self._width, self._sizes = width, sizes
        self._run, self._code = library.functions.fired_sum_run, library.code
        self._run.argtypes = (
            *(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64),
            *(ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p),
        )
        self._run.restype = None
        self._given = _Layer(
            Starts.of(cell_starts), *map(pointer, (u[0], v[0], u[1], v[1], bias_E)), axes,
            PRECISIONS.index(u[0].dtype), _ACTIVATIONS.index(act),
        )  # fmt: skip

    def __call__(self, x_ND: Tensor, packed: Packed) -> Tensor:
        """(N, D) float32; x is that too, and contiguous."""
        if x_ND.shape != (packed.tokens, self._width) or packed.sizes != self._sizes:
            raise Mistake(
                f"fired_sum got x_ND of shape {tuple(x_ND.shape)} for {packed.tokens} tokens of a router of heads, "
                f"rows and columns {packed.sizes}; it takes their states, {self._width} wide, and a router of "
                f"{self._sizes}"
            )
        y_ND = torch.empty_like(x_ND)
        self._run(
            ctypes.byref(self._given), x_ND.data_ptr(), packed.words.data_ptr(), packed.tokens, packed.pairs,
            packed.keys, self._code, torch.get_num_threads(), y_ND.data_ptr(),
        )  # fmt: skip
        return y_ND


def _check_cells(cell_starts: CellStarts, cells: int, experts: int) -> None:
    Starts.of(cell_starts)
    start_C1 = cell_starts.row()
    if cell_starts.cells != cells or bool((start_C1.diff() < 0).any()) or start_C1[0] != 0 or start_C1[-1] != experts:
        raise Mistake(
            f"fired_sum got starts of {cell_starts.cells} cells from {int(start_C1[0])} to {int(start_C1[-1])}; it "
            f"takes those of {cells} cells, that rise from 0 to {experts}, the number of experts; make the artifact "
            "again, or copy its file again"
        )
