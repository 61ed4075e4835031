"""The store with 2,000 artifacts: what ls, tree and the rest take after imports. python -m tests.benchmarks.listing"""

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from artifacts import ArtifactId, InputRef, Lineage, Manifest, Recipe, Store
from artifacts.__main__ import main as command
from artifacts.manifest import MANIFEST, WEIGHTS, FileRecord
from tests.circumstance import CIRCUMSTANCE

CHAIN = 9  # artifacts a chain, as a run of the real one makes


def fill(root: Path, count: int) -> list[Manifest]:
    """Writes manifests alone, of the size of real ones: chains of artifacts, each made from the one before."""
    made: list[Manifest] = []
    for number in range(count):
        parents = {} if number % CHAIN == 0 else {"corpus": made[number - number % CHAIN], "peer": made[-1]}
        made.append(manifest(number, parents))
        folder = root / made[-1].id
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(made[-1].to_json(), encoding="utf-8")
    return made


def manifest(number: int, parents: dict[str, Manifest]) -> Manifest:
    config = {f"group_{i}": {f"field_{j}": i / (j + 1) for j in range(8)} for i in range(4)} | {"number": number}
    inputs = {role: parent.id for role, parent in parents.items()}
    recipe = Recipe(stage=f"train-part-{number % CHAIN}", stage_version=1, config=config, seed=0, inputs=inputs)
    lineage = Lineage(
        **recipe.model_dump(exclude={"inputs"}),
        **CIRCUMSTANCE.model_dump(),
        inputs={role: InputRef(id=parent.id, sha256=parent.content_sha256) for role, parent in parents.items()},
        sequence=number + 1,
    )
    return Manifest.describe(
        id=recipe.id,
        kind="peer" if parents else "corpus",
        spec={"transformer": {f"width_{i}": i for i in range(8)}, "experts": {f"size_{i}": i for i in range(16)}},
        metrics={f"metric_{i}_nats": i / 7 for i in range(24)} | {"held_out_loss_nats": 3.25},
        lineage=lineage,
        files={WEIGHTS: FileRecord(sha256=f"{number:064x}", bytes=4096)},
    )


def publish(store: Store, number: int, parent: Manifest) -> ArtifactId:
    """An artifact without tensors, as `run_stage` publishes one."""
    recipe = Recipe(stage="train-more", stage_version=1, config={"number": number}, seed=0, inputs={"peer": parent.id})
    return store.publish(
        recipe=recipe, kind="peer", spec={}, tensors={}, metrics={}, files={}, circumstance=CIRCUMSTANCE
    )


def seconds(operation: Callable[[], object], repeats: int = 5) -> float:
    """The least of a few runs, in time on the clock: reading files is part of it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            operation()
        times.append(time.perf_counter() - start)
    return min(times)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.listing", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="artifacts in the store (default: 2000)")
    count = parser.parse_args(arguments).count
    with tempfile.TemporaryDirectory(prefix="listing-") as folder:
        store = Store(Path(folder) / "store")
        made = fill(store.root, count)
        shell = ("--store", str(store.root))
        numbers = iter(range(count))
        rows: dict[str, Callable[[], object]] = {
            "ls": lambda: command([*shell, "ls"]),
            "ls --json": lambda: command([*shell, "ls", "--json"]),
            "tree": lambda: command([*shell, "tree"]),
            "tree ID": lambda: command([*shell, "tree", made[-1].id]),
            "show ID": lambda: command([*shell, "show", made[-1].id]),
            "diff A B": lambda: command([*shell, "diff", made[-1].id, made[-2].id]),
            "card ID": lambda: command([*shell, "card", made[-1].id]),
            "latest": lambda: store.latest(kind="corpus"),
            "children": lambda: store.children(made[0].id),
            "find": lambda: store.find(made[-1].lineage.recipe),
            "ancestry": lambda: store.ancestry(made[-1].id),
            "publish": lambda: publish(store, next(numbers), made[-1]),
        }
        table = Table("operation", "seconds")
        for name, operation in rows.items():
            table.add_row(name, f"{seconds(operation):.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
