"""Training in int4 at scale, as a user does it: memory beside the tables, and speed as the pool grows.

`python -m tests.benchmarks.int4_scale` runs `python -m stages train-peer` with int4 tables of 65,536 and of 1,048,576
experts a block at width 256, in a store of its own that is removed afterwards. It prints what README claims. Table
bytes hold all that is stored of an expert, its cell in the index of cells among it, and its bias's moments.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from artifacts import Manifest, Store

ROOT = Path(__file__).resolve().parents[2]
WIDTH, STEPS = 256, 60
CONSOLE = Console(width=200)
KEYS = (256, 1024)


def trained(num_keys: int, store: Path) -> Manifest:
    """The artifact of a PEER with num_keys squared experts a block."""
    options = {
        "peer.precision": "int4",
        "peer.num-keys": num_keys,
        "peer.num-experts": num_keys**2,
        "transformer.d-model": WIDTH,
        "transformer.num-layers": 1,
        "training.steps": STEPS,
        "training.warmup-steps": 10,
    }
    flags = [word for name, value in options.items() for word in (f"--config.{name}", str(value))]
    run("train-peer", "--store", str(store), *flags)
    return Store(store).manifests()[-1]


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "stages", *words], cwd=ROOT, check=True, capture_output=True)


def table_bytes(manifest: Manifest) -> float:
    entries = 2 * manifest.metrics["num_experts"] * WIDTH
    return manifest.metrics["table_bytes_per_parameter"] * entries


def main() -> None:
    CONSOLE.print(f"width {WIDTH}, one block, 4 heads of 8 pairs, {STEPS} steps of 1,024 tokens\n")
    CONSOLE.print("| experts | table bytes/parameter | tables, MB | peak resident, MB | all else, MB | tokens/s |")
    CONSOLE.print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    speeds = []
    with tempfile.TemporaryDirectory() as folder:
        run("prepare-corpus", "--store", folder)  # in a process of its own, whose memory is not that of training
        for num_keys in KEYS:
            metrics = (manifest := trained(num_keys, Path(folder))).metrics
            tables, peak = table_bytes(manifest) / 1e6, metrics["peak_memory_bytes"] / 1e6
            speeds.append(metrics["tokens_per_second"])
            CONSOLE.print(
                f"| {metrics['num_experts']:,.0f} | {metrics['table_bytes_per_parameter']:.4f} | {tables:,.0f} "
                f"| {peak:,.0f} | {peak - tables:,.0f} | {speeds[-1]:,.0f} |"
            )
    CONSOLE.print(f"\nspeed at {KEYS[1] ** 2:,} experts is {speeds[1] / speeds[0]:.2f} of that at {KEYS[0] ** 2:,}")


if __name__ == "__main__":
    main()
