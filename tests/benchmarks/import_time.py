"""What starting costs in two checkouts: python -m tests.benchmarks.import_time TREE OTHER.

The trees take turns, round after round, so that what else the machine does meets both alike; medians are shown, of
processor time in user mode and of the clock. It prints a table in Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

STARTS: Mapping[str, Sequence[str]] = {
    "`import torch`": ("-c", "import torch"),
    "`import pipeline.models`": ("-c", "import pipeline.models"),
    "`python -m pipeline.generate --help`": ("-m", "pipeline.generate", "--help"),
}
Seconds = tuple[float, float]
"""In user mode, and by the clock."""


def start(words: Sequence[str], tree: Path) -> Seconds:
    """RuntimeError where Python does not end well."""
    # With bytecode, as at any start but the first.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before = time.monotonic()
    process = subprocess.Popen([sys.executable, *words], cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"python {' '.join(words)} ended with {process.returncode} in {tree}; see above")
    return usage.ru_utime, time.monotonic() - before


def medians(trees: Sequence[Path], rounds: int) -> dict[str, list[Seconds]]:
    """For each start, its seconds in each tree."""
    found: dict[str, list[Seconds]] = {}
    for what, words in STARTS.items():
        for tree in trees:  # a first one compiles, and is not counted
            start(words, tree)
        turns = [[start(words, tree) for tree in trees] for _ in range(rounds)]
        found[what] = [
            (statistics.median(user for user, _ in of_tree), statistics.median(wall for _, wall in of_tree))
            for of_tree in zip(*turns, strict=True)
        ]
    torch, models = list(found.values())[:2]
    found["the models beyond torch"] = [(m[0] - t[0], m[1] - t[1]) for m, t in zip(models, torch, strict=True)]
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.import_time", description=__doc__)
    parser.add_argument("trees", nargs=2, type=Path, metavar="TREE", help="two checkouts; the second is compared with")
    parser.add_argument("--rounds", type=int, default=7, help="of each start in each tree (default: 7)")
    args = parser.parse_args(arguments)
    console = Console(width=200, soft_wrap=True, highlight=False)
    console.print("| | user s | other's | times less | clock s | other's | times less |")
    console.print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for what, (ours, others) in medians(args.trees, args.rounds).items():
        cells = [f"{own:.2f} | {other:.2f} | {other / own:.1f}" for own, other in zip(ours, others, strict=True)]
        console.print(f"| {what} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
