"""The only door to difflogic, an optional extra: its layer where it can be imported, ours everywhere else."""

import contextlib
import io
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.symbolic.rules.logic_layer import GateLayer, LogicLayer, copy_gates

_log = logging.getLogger(__name__)


@cache
def layer_class() -> Any | None:
    """difflogic.LogicLayer, or None where the extra is not there (it does not install without a CUDA toolkit)."""
    try:
        from difflogic import LogicLayer as theirs  # type: ignore[import-not-found]
    except ImportError:
        _log.info("gate networks learn in our own LogicLayer: difflogic cannot be imported")
        return None
    _log.info("gate networks learn in difflogic's LogicLayer")
    return theirs


def gate_layer(in_dim: int, wire_a_O: Tensor, wire_b_O: Tensor, *, generator: torch.Generator) -> GateLayer:
    """A layer to learn in, with these wires and random weights."""
    ours = LogicLayer(in_dim, wire_a_O, wire_b_O, generator=generator)
    return ours if layer_class() is None else as_difflogic(ours)


def as_difflogic(layer: LogicLayer) -> GateLayer:
    """difflogic's layer with these gates and wires. ImportError where difflogic is not there."""
    theirs = layer_class()
    if theirs is None:
        raise ImportError("difflogic cannot be imported; install the extra 'difflogic', which needs a CUDA toolkit")
    with torch.random.fork_rng(devices=[]):  # it draws wires and weights, which are replaced
        # It refuses fewer gates than half its inputs, so it is made for fewer inputs and then told of all.
        made = theirs(min(layer.in_dim, 2 * layer.out_dim), layer.out_dim, device="cpu", implementation="python")
    made.in_dim = layer.in_dim
    copy_gates(layer, made)
    return made


def run(layer: GateLayer, x_BI: Tensor) -> Tensor:
    """What the layer says. difflogic 0.1.0 prints two lines at every call, which are kept in."""
    if isinstance(layer, LogicLayer):
        return layer(x_BI)
    with contextlib.redirect_stdout(io.StringIO()):
        return layer(x_BI)
