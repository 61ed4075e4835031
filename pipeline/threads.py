"""How threads wait for each other: chosen before torch is imported, since libgomp reads it once, when it is loaded.

The number of threads is torch's, one a core, whatever else runs: another number may add in another order, so that a
run beside others, or one that goes on after a pause, would give other bits. How they wait changes time alone. By
itself libgomp spins 300,000 rounds, which is milliseconds, at the end of every operation, on a core that the thread it
waits for may need. The numbers here are from docs/benchmarks/2026-11-29-busy-machine.md.
"""

import os
import sys
from collections.abc import MutableMapping

SPINS_ALONE = 1000
"""Rounds that a thread spins before it sleeps: 7 % slower alone, and of use when other work begins later."""
SPINS_BESIDE_OTHERS = 100
_SPINS = "GOMP_SPINCOUNT"


def choose_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Makes threads that wait sleep soon, sooner on a busy machine, unless the user has said how they wait."""
    if sys.platform != "linux" or _SPINS in environment or "OMP_WAIT_POLICY" in environment:
        return
    busy = is_busy(os.getloadavg()[0], cores=os.cpu_count() or 1, ours=len(os.sched_getaffinity(0)))
    environment[_SPINS] = str(SPINS_BESIDE_OTHERS if busy else SPINS_ALONE)


def is_busy(load: float, *, cores: int, ours: int) -> bool:
    """Whether a thread on each of our cores would share one with those that run already."""
    return load > cores - ours + 0.5


def waiting_said(environment: MutableMapping[str, str] = os.environ) -> str | None:
    """A sentence where threads wait as on a busy machine."""
    if environment.get(_SPINS) != str(SPINS_BESIDE_OTHERS):
        return None
    return (
        f"other work shares this machine's cores: threads that wait sleep after {SPINS_BESIDE_OTHERS} rounds instead "
        f"of {SPINS_ALONE:,}; {_SPINS} sets another number, and no result depends on it"
    )
