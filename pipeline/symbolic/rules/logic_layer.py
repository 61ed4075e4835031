"""LogicLayer: two-input gates learned by gradient, with difflogic's numbers and names, on wires of the caller's choice.

Each gate is a mixture of all sixteen while it learns (Petersen et al. 2022), by softmax of its weights, and the
likeliest one afterwards. As every gate of a and b in [0, 1] is c0 + ca a + cb b + cab a b, a mixture of gates is one
too, and sixteen terms become four.
"""

# B samples, I inputs, O outputs (gates), G gate types

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kernels.errors import Mistake
from pipeline.symbolic.rules.logic import GATE_OUTPUT_G4


def _coefficients() -> Tensor:
    """(16, 4): c0, ca, cb, cab of every gate, from its outputs for (a, b) = 00, 01, 10, 11."""
    at_00, at_01, at_10, at_11 = GATE_OUTPUT_G4.float().unbind(1)
    return torch.stack([at_00, at_10 - at_00, at_01 - at_00, at_11 - at_10 - at_01 + at_00], dim=1)


COEFFICIENT_G4 = _coefficients()


class GateLayer(Protocol):
    """What difflogic's layer and ours have in common."""

    in_dim: int
    out_dim: int
    weights: nn.Parameter
    indices: Any
    """The wires of every gate, where it reads a and where b: a pair of tensors, or one of two rows."""

    def __call__(self, x: Tensor) -> Tensor: ...


class LogicLayer(nn.Module):
    """(B, I) -> (B, O). The wires are in the state, so that a reloaded layer is the same."""

    weights: nn.Parameter
    """(O, 16): the softmax gives each gate type its share."""
    indices: Tensor
    """(2, O): the inputs that each gate reads."""

    def __init__(self, in_dim: int, wire_a_O: Tensor, wire_b_O: Tensor, *, generator: torch.Generator) -> None:
        super().__init__()
        indices = torch.stack([wire_a_O, wire_b_O]).long()
        outside = (indices < 0) | (indices >= in_dim)
        if bool(outside.any()):
            place = [int(index) for index in outside.nonzero()[0]]
            raise Mistake(
                f"LogicLayer got wire {int(indices[*place])} for input {'ab'[place[0]]} of gate {place[1]}; "
                f"its {in_dim} inputs are 0 to {in_dim - 1}"
            )
        self.in_dim, self.out_dim = in_dim, indices.shape[1]
        self.weights = nn.Parameter(torch.randn(self.out_dim, 16, generator=generator))
        self.register_buffer("indices", indices)

    def forward(self, x_BI: Tensor) -> Tensor:
        """In training the mixture, of inputs from 0 to 1; else each gate's likeliest type."""
        a_BO, b_BO = x_BI[..., self.indices[0]], x_BI[..., self.indices[1]]
        if self.training:
            c0, ca, cb, cab = (torch.softmax(self.weights, dim=-1) @ COEFFICIENT_G4.to(x_BI)).unbind(-1)
        else:
            c0, ca, cb, cab = COEFFICIENT_G4.to(x_BI)[self.kinds()].unbind(-1)
        return c0 + ca * a_BO + b_BO * (cb + cab * a_BO)

    def kinds(self) -> Tensor:
        """(O) the likeliest type of each gate."""
        return self.weights.argmax(-1)

    def extra_repr(self) -> str:
        return f"{self.in_dim}, {self.out_dim}"


def copy_gates(source: GateLayer, into: GateLayer) -> None:
    """Gives `into` the weights and wires of `source`; either may be difflogic's. ValueError for another shape."""
    ours, theirs = (into.in_dim, into.out_dim), (source.in_dim, source.out_dim)
    if ours != theirs:
        raise Mistake(f"a layer of {theirs} inputs and gates does not fit one of {ours}; make both of one shape")
    with torch.no_grad():
        into.weights.copy_(source.weights)
    wires = tuple(wire.clone() for wire in source.indices)
    # difflogic keeps a pair of tensors, and outside its state.
    into.indices = torch.stack(wires) if isinstance(into.indices, Tensor) else wires
