"""`make faults`: every fault at every point, and a count of what came of it. `... WORD` runs drills of that name."""

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from tests.faults.cases import Drill, Outcome
from tests.faults.chain import Library
from tests.faults.drills import Find, of_stages, of_the_store

_COLUMNS = ("points", "faults injected", "artifacts lost", "corrupt loaded", "hangs", "failures", "seconds")


@dataclass(kw_only=True, slots=True)
class Count:
    """What all cases of a drill came to."""

    name: str
    points: int = 0
    injected: int = 0
    lost: int = 0
    corrupt: int = 0
    hangs: int = 0
    failures: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        self.injected += outcome.injected
        self.lost += outcome.lost
        self.corrupt += outcome.corrupt
        self.hangs += outcome.hangs
        self.failures += outcome.failures

    def numbers(self) -> list[float]:
        return [self.points, self.injected, self.lost, self.corrupt, self.hangs, self.failures, self.seconds]

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.corrupt or self.hangs or self.failures)


def run(drill: Drill, folder: Path) -> Count:
    """Runs all cases, each in an empty folder."""
    count = Count(name=drill.name, points=drill.points)
    for number, case in enumerate(drill.cases):
        with tempfile.TemporaryDirectory(prefix=f"{number}-", dir=folder) as place:
            outcome = case.run(Path(place))
        count.add(outcome)
        count.said += [f"{drill.name}: {case.name}: {said}" for said in outcome.said]
    return count


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    console = Console(width=140, highlight=False)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        finds: dict[str, Find] = of_the_store()
        counts = [_counted(console, key, find, folder) for key, find in finds.items() if _is_asked(key, words)]
        library = Library.made_in(folder)
        finds = of_stages(library)
        counts += [_counted(console, key, find, folder) for key, find in finds.items() if _is_asked(key, words)]
    console.print(_table(counts, time.monotonic() - start))
    return 0 if all(count.is_good for count in counts) else 1


def _is_asked(name: str, words: list[str]) -> bool:
    return not words or any(word in name for word in words)


def _counted(console: Console, name: str, find: Find, folder: Path) -> Count:
    start = time.monotonic()
    place = folder / name.replace(" ", "-").replace(",", "")
    place.mkdir()
    count = run(find(place), place)
    count.seconds = time.monotonic() - start
    console.print(
        f"{count.name}: {count.injected} faults in {count.seconds:.1f} s{'' if count.is_good else ', NOT GOOD'}"
    )
    for said in count.said:
        console.print(f"  {said}")
    return count


def _table(counts: list[Count], seconds: float) -> Table:
    table = Table("scenario", box=box.SIMPLE_HEAD, pad_edge=False)
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    total = Count(name="all")
    for count in counts:
        table.add_row(count.name, *(f"{number:,.0f}" for number in count.numbers()))
        for name in ("points", "injected", "lost", "corrupt", "hangs", "failures"):
            setattr(total, name, getattr(total, name) + getattr(count, name))
    total.seconds = seconds
    table.add_section()
    table.add_row(total.name, *(f"{number:,.0f}" for number in total.numbers()))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
