"""What a running stage may reach besides its inputs: its seed, where its checkpoints go, and who hears of its progress.

A stage is a pure function of its config and inputs; only `pipeline/training/loop.py` and loops of minutes look in here.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kernels.errors import Mistake

LEAST_SEED, MOST_SEED = -(2**63), 2**64 - 1
"""What torch's generators take."""


def check_seed(seed: int) -> None:
    """ValueError for one that no generator takes."""
    if not LEAST_SEED <= seed <= MOST_SEED:
        raise Mistake(f"--seed: got {seed}, wanted a whole number from -2**63 to 2**64 - 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a loop has come; `numbers` are metrics to show beside it."""

    what: str
    step: int
    total: int
    """0 where `what` is a sentence that the stage says, and no loop."""
    seconds: float
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    checkpoints: Path | None = None
    """Folder for the checkpoints of this recipe alone; None keeps none."""
    report: Callable[[Progress], None] = lambda progress: None

    def generator(self, purpose: str) -> torch.Generator:
        """A CPU generator of its own for each purpose, so that one more draw here moves nothing there."""
        return torch.Generator().manual_seed(self.stream(purpose))

    def stream(self, purpose: str) -> int:
        """A number below 2**56 for each purpose: the seed of a generator, or the key of a counter's random bits."""
        digest = hashlib.sha256(f"{self.seed}/{purpose}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


_OUTSIDE = Run()
_current: ContextVar[Run] = ContextVar("run")


def current_run() -> Run:
    """The run that is going on; outside of any, seed 0 on the CPU with no checkpoints."""
    return _current.get(_OUTSIDE)


@contextmanager
def running(run: Run) -> Iterator[Run]:
    """Makes `run` the current one and pins torch's global generator to its seed, both given back afterwards."""
    token = _current.set(run)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            yield run
    finally:
        _current.reset(token)


def steps(what: str, total: int, *, first: int = 0) -> Iterator[int]:
    """Counts from `first` to `total`, reporting progress at most twice a second."""
    run, start, told = current_run(), time.monotonic(), 0.0
    for step in range(first, total):
        yield step
        now = time.monotonic()
        if now - told > 0.5 or step + 1 == total:
            run.report(Progress(what=what, step=step + 1, total=total, seconds=now - start))
            told = now


def say(sentence: str) -> None:
    """Tells whoever hears of the run's progress what a person should know of its input."""
    current_run().report(Progress(what=sentence, step=0, total=0, seconds=0.0))
