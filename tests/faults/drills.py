"""Every drill there is, each with a folder in which it finds its cases."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults import crowd, damage, mutated
from tests.faults.cases import Drill
from tests.faults.chain import Library, scenarios
from tests.faults.publishing import SCENARIOS
from tests.faults.sweep import rehearsed

Find = Callable[[Path], Drill]


def of_the_store() -> dict[str, Find]:
    """Those that need no stage."""
    return {
        **{scenario.name: partial(rehearsed, scenario) for scenario in SCENARIOS},
        "flips": damage.flips,
        "broken files": damage.broken_files,
        "size limits": damage.size_limits,
        "publishers": crowd.publishers,
        "mutations": mutated.mutations,
    }


def of_stages(library: Library) -> dict[str, Find]:
    return {
        **{scenario.name: partial(rehearsed, scenario) for scenario in scenarios(library)},
        "checkpoints": partial(damage.checkpoints, library),
        "runs": partial(crowd.runs, library),
        "clocks": partial(crowd.clocks, library),
    }
