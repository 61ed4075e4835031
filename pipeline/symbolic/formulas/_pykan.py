"""The only door to pykan, which seeds, prints, writes folders and warns: within it all of that is kept in."""

import contextlib
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
    no folder as long as MultKAN gets `auto_save=False`; so must what `prune_input` returns, which forgets it.
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

        theirs = dict(SYMBOLIC_LIB)
        SYMBOLIC_LIB.update(ENTRIES)
        try:
            yield Pykan(MultKAN, B_batch, extend_grid, kanpiler)
        finally:
            SYMBOLIC_LIB.clear()
            SYMBOLIC_LIB.update(theirs)
            np.random.set_state(numpy_state)
            random.setstate(python_state)


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
