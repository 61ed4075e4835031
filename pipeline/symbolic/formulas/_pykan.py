"""The only door to pykan, which seeds, prints, writes folders and warns: within it all of that is kept in."""

import contextlib
import functools
import importlib
import io
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.symbolic.formulas.kan_functions import ENTRIES

DEGREE = 3


@dataclass(frozen=True, slots=True)
class Pykan:
    """What is used of the package; it has no types."""

    MultKAN: Callable[..., Any]
    B_batch: Callable[[Tensor, Tensor, int], Tensor]
    extend_grid: Callable[[Tensor, int], Tensor]
    kanpiler: Callable[..., Any]


@contextlib.contextmanager
def pykan() -> Iterator[Pykan]:
    """The package with our functions in its library, gradients on; all it does to the process is undone on leaving.

    That is: the states of torch's, numpy's and Python's generators, what is printed, warnings, its library. It makes
    no folder as long as MultKAN gets `auto_save=False`; so must what `prune_input` returns, which forgets it. The
    coefficients that its splines set out with are the same each time (`_repeatable`).
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        torch.enable_grad(),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        # Importing kan costs seconds and draws matplotlib and scikit-learn; only the distilling stage needs it.
        from kan.compiler import kanpiler
        from kan.MultKAN import MultKAN
        from kan.spline import B_batch, extend_grid
        from kan.utils import SYMBOLIC_LIB

        layers: Any = importlib.import_module("kan.KANLayer")  # `kan` itself has the class of this name
        theirs, curve2coef = dict(SYMBOLIC_LIB), layers.curve2coef
        SYMBOLIC_LIB.update(ENTRIES)
        layers.curve2coef = _repeatable(curve2coef)
        try:
            yield Pykan(MultKAN, B_batch, extend_grid, kanpiler)
        finally:
            SYMBOLIC_LIB.clear()
            SYMBOLIC_LIB.update(theirs)
            layers.curve2coef = curve2coef
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def _repeatable(curve2coef: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """pykan's least squares of a spline, whose result depends on its arguments alone.

    It calls `torch.linalg.lstsq`, whose default driver, LAPACK's gelsy, reads which columns not to move from memory
    that torch has not set (pytorch issue 187411). So what some freed tensor held decided how sums were rounded, and
    training made other formulas of it. Where algorithms must be deterministic, torch fills such memory first.
    """

    @functools.wraps(curve2coef)
    def repeatable(*arguments: Any, **named: Any) -> Tensor:
        enabled = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return curve2coef(*arguments, **named)
        finally:
            torch.use_deterministic_algorithms(enabled, warn_only=warns)

    return repeatable


def spline_basis(z_NE: Tensor, knots_EG: Tensor) -> Tensor:
    """(N, E, G - 1 + DEGREE) cubic B-spline basis of each column on its own even knots, pykan's `B_batch`.

    Outside the knots the basis fades to 0, so callers clamp their argument.
    """
    with pykan() as kan, torch.no_grad():
        return kan.B_batch(z_NE, kan.extend_grid(knots_EG, DEGREE), DEGREE)


def picture(model: Any, inputs: list[str], output: str) -> bytes:
    """A PNG of a MultKAN that has seen data; to be called within the door, under which it was made."""
    from matplotlib import pyplot

    before = set(pyplot.get_fignums())
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.plot(folder=folder, in_vars=inputs, out_vars=[output])
            path = Path(folder) / "whole.png"
            pyplot.savefig(path, dpi=150, bbox_inches="tight")
            return path.read_bytes()
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
