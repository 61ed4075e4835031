"""What a PEER router says of its tokens: the cells that they reach, with what gates, and the sub-keys that passed."""

# N tokens, H heads, I sub-keys of the rows, J of the columns, P pairs of a token and a cell, in order of their tokens,
# Q scores that pass

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.axis_bias import axis_bias
from kernels.jump_router.packed import Packed
from kernels.pairs import tokens_of_pairs
from pipeline.models.number_types import at_least_float32


class AxisGates(Protocol):
    """Gates that the sub-keys of each axis have of their own."""

    def log_gates(self) -> tuple[Tensor, Tensor]:
        """(N, H, I) and (N, H, J), minus infinity where a sub-key does not pass."""
        ...

    def weighted(self, row_ID: Tensor, column_JD: Tensor) -> Tensor:
        """(N, D) the sum of these rows by their gates, over sub-keys and heads."""
        ...


@dataclass(frozen=True, slots=True)
class LogGates:
    """Of all sub-keys. Differentiable."""

    row_NHI: Tensor
    column_NHJ: Tensor

    def log_gates(self) -> tuple[Tensor, Tensor]:
        return self.row_NHI, self.column_NHJ

    def weighted(self, row_ID: Tensor, column_JD: Tensor) -> Tensor:
        gate1_NI, gate2_NJ = (log_gate_NHX.exp().sum(1) for log_gate_NHX in self.log_gates())
        return gate1_NI.type_as(row_ID) @ row_ID + gate2_NJ.type_as(row_ID) @ column_JD


@dataclass(frozen=True, kw_only=True, slots=True)
class PassingKeys:
    """The sub-keys that pass, and nothing of those that do not, as kernels/jump_router lists them."""

    sizes: tuple[int, int, int]
    """H, I and J."""
    score_Q: Tensor
    start_N1: Tensor
    log_gate_Q: Tensor
    gate_Q: Tensor

    def log_gates(self) -> tuple[Tensor, Tensor]:
        heads, rows, columns = self.sizes
        log_gate_NS = self.log_gate_Q.new_full((len(self.start_N1) - 1, heads * (rows + columns)), -torch.inf)
        log_gate_NS[tokens_of_pairs(self.start_N1), self.score_Q.long()] = self.log_gate_Q
        row_NX, column_NX = log_gate_NS.split((heads * rows, heads * columns), dim=1)
        return row_NX.unflatten(1, (heads, rows)), column_NX.unflatten(1, (heads, columns))

    def weighted(self, row_ID: Tensor, column_JD: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return LogGates(*self.log_gates()).weighted(row_ID, column_JD)
        wide = at_least_float32(row_ID), at_least_float32(column_JD)
        return axis_bias(self.score_Q, self.gate_Q, self.start_N1, self.sizes[0], *wide).type_as(row_ID)


@dataclass(frozen=True, slots=True)
class _RoutingTensors:
    cell_P: Tensor
    start_N1: Tensor
    gate_P: Tensor
    axes: AxisGates | None


class PeerRouting:
    """Which cells a token reaches, with what gates.

    A router in C++ leaves it `packed`, which experts in C++ take as it is; tensors are made when they are asked for.
    """

    __slots__ = ("_tensors", "packed")

    packed: Packed | None

    def __init__(self, cell_P: Tensor, start_N1: Tensor, gate_P: Tensor, axes: AxisGates | None) -> None:
        """`start_N1`: where each token's pairs start. `axes`: log gates of the axes or what passes of them; only the
        jumprelu gate has them."""
        self._tensors: _RoutingTensors | None = _RoutingTensors(cell_P, start_N1, gate_P, axes)
        self.packed = None

    @classmethod
    def of_packed(cls, packed: Packed) -> "PeerRouting":
        routing = cls.__new__(cls)
        routing._tensors, routing.packed = None, packed
        return routing

    @property
    def tensors(self) -> _RoutingTensors:
        if self._tensors is None:
            assert self.packed is not None
            fired = self.packed.fired
            keys = PassingKeys(
                sizes=self.packed.sizes,
                score_Q=fired.score_Q, start_N1=fired.key_start_N1, log_gate_Q=fired.log_gate_Q, gate_Q=fired.gate_Q,
            )  # fmt: skip
            self._tensors = _RoutingTensors(fired.cell_P, fired.start_N1, fired.gate_P, keys)
        return self._tensors

    @property
    def cell_P(self) -> Tensor:
        return self.tensors.cell_P

    @property
    def start_N1(self) -> Tensor:
        """Where each token's pairs start."""
        return self.tensors.start_N1

    @property
    def gate_P(self) -> Tensor:
        return self.tensors.gate_P

    @property
    def axes(self) -> AxisGates | None:
        return self.tensors.axes

    @property
    def log_gate1_NHI(self) -> Tensor | None:
        """Log gates of the rows, minus infinity where a sub-key does not pass."""
        return None if self.axes is None else self.axes.log_gates()[0]

    @property
    def log_gate2_NHJ(self) -> Tensor | None:
        """Log gates of the columns."""
        return None if self.axes is None else self.axes.log_gates()[1]
