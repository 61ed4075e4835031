"""What Prefect costs: the same tiny chain with and without it, cold and reused: python -m tests.benchmarks.overhead."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from stages.command import ROOT
from tests.shapes import SHAPES

ROUNDS = 3  # the median of each is shown
BARE = """
import sys, time
from artifacts import Store
from pipeline.stage import run_stage
from stages.command import read
command = read(sys.argv[1:])
store, made = Store(command.store), {}
for step in command.plan.steps():
    inputs = {role: made[producer] for role, producer in step.inputs.items()}
    made[step.name] = run_stage(step.stage, command.plan.config_of(step), inputs=inputs, store=store).id
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = folder / "text.txt"
        text.write_text("\n".join(f"{i % 97}. the miller's cat sleeps on {i % 13} sacks of flour" for i in range(800)))
        seconds: dict[str, list[tuple[float, float]]] = {}
        for i in range(ROUNDS):
            for what, store, home in (
                ("9 stages made, new Prefect database", f"made{i}", f"home{i}"),
                ("9 stages reused, the same database", f"made{i}", f"home{i}"),
                ("9 stages made, the same database", f"again{i}", f"home{i}"),
            ):
                pair = (
                    _seconds(folder, text, store, home, with_prefect=False),
                    _seconds(folder, text, store, home, with_prefect=True),
                )
                seconds.setdefault(what, []).append(pair)
    table = Table("whole process, seconds", "without", "with Prefect", "Prefect adds", "a stage", box=box.SIMPLE_HEAD)
    for what, pairs in seconds.items():
        without, with_it = (statistics.median(column) for column in zip(*pairs, strict=True))
        added = with_it - without
        table.add_row(what, f"{without:.1f}", f"{with_it:.1f}", f"{added:.1f}", f"{added / 9:.2f}")
    Console().print(table)


def _seconds(folder: Path, text: Path, store: str, home: str, *, with_prefect: bool) -> float:
    arguments = ["run", "--corpus", f"mixed={text}", "--store", str(folder / f"{store}-{with_prefect}"), *SHAPES]
    program: Sequence[str] = ["flows.py"] if with_prefect else ["-c", BARE]
    environment: Mapping[str, str] = {**os.environ, "PREFECT_HOME": str(folder / home)}
    start = time.monotonic()
    subprocess.run([sys.executable, *program, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.monotonic() - start


if __name__ == "__main__":
    main()
