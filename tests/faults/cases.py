"""A case is one fault that is injected into one run; what came of it is counted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.ledger import Findings


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What one case came to."""

    injected: int = 1
    lost: int = 0
    corrupt: int = 0
    hangs: int = 0
    failures: int = 0
    said: tuple[str, ...] = ()
    """A sentence on each thing that is wrong."""

    @classmethod
    def of(cls, findings: Findings) -> "Outcome":
        return cls(
            lost=len(findings.lost),
            corrupt=len(findings.corrupt),
            failures=len(findings.failures),
            said=(*findings.lost, *findings.corrupt, *findings.failures),
        )

    @classmethod
    def hung(cls, said: str) -> "Outcome":
        return cls(hangs=1, said=(said,))

    @classmethod
    def missed(cls, said: str) -> "Outcome":
        """The fault did not happen: an error of the harness, and no injected fault."""
        return cls(injected=0, failures=1, said=(f"the fault was not injected: {said}",))

    @property
    def is_good(self) -> bool:
        return self.injected > 0 and not self.said


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    run: Callable[[Path], Outcome]
    """Runs in an empty folder of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drill:
    """The cases of one scenario."""

    name: str
    points: int
    """Different places at which its faults strike."""
    cases: list[Case]


Rehearse = Callable[[Path], Drill]
"""Finds a drill's cases by an undisturbed run in this folder, which the cases go on to read."""
