"""What sparsity costs: distil-peer of one Monet over numbers of features, of terms a score and of terms a row of u.

`python -m tests.benchmarks.sparsity MONET_ID ... --store DIR [--plot FILE]` makes an artifact for each Monet and arm
(what the store has is reused), and prints a table in Markdown: increases of the loss over that of the dense arm, paired
by Monet, and 95 % intervals where there are several. One thread. `--preset NAME` takes the settings of another size
than tiny, `--arms 128:8:32 ...` other numbers: features, terms of a score, terms of a row of u, 0 for all.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from artifacts import ArtifactId, Store
from pipeline.figures.studies import intervals
from pipeline.stage import run_stage
from pipeline.studies.intervals import Interval, paired
from pipeline.transforms.sparsity import Sparsity
from stages.distill_peer import DistillPeerConfig, distill_peer
from stages.presets import preset_of

CONSOLE = Console(width=200, soft_wrap=True)
ARMS = ("0:0:16", "0:0:8", "64:8:0", "64:4:0", "32:8:0", "64:8:16", "64:4:8")
"""Features, terms of a score, terms of a row of u."""


def arm_of(text: str) -> Sparsity:
    features, terms, u = map(int, text.split(":"))
    return Sparsity(score_features=features, score_terms=terms, u_terms=u)


def name_of(arm: Sparsity) -> str:
    parts = [f"{arm.score_terms} of {arm.score_features} features"] * (arm.score_features > 0)
    return ", ".join(parts + [f"u {arm.u_terms}"] * (arm.u_terms > 0)) or "dense"


def losses(monet: ArtifactId, arm: Sparsity, config: DistillPeerConfig, store: Store) -> tuple[float, float, float]:
    """Held-out loss, its increase over the Monet's and KL from it, nats a token."""
    lineage = store.open(monet).manifest.lineage
    inputs = {"monet": monet, "corpus": lineage.inputs["corpus"].id}
    config = config.model_copy(update={"sparsity": arm})
    made = run_stage(distill_peer, config, inputs=inputs, store=store, seed=lineage.seed)
    metrics = store.open(made.id).manifest.metrics
    return metrics["held_out_loss_nats"], metrics["loss_increase_nats"], metrics["kl_to_teacher_nats"]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sparsity")
    parser.add_argument("monets", nargs="+", metavar="MONET_ID")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--plot", type=Path, help="a PNG of the intervals, where there are several Monets")
    parser.add_argument("--preset", default="tiny", help="the Monets' preset")
    parser.add_argument("--arms", nargs="+", default=ARMS, help="FEATURES:TERMS:U, beside the dense arm")
    values = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store, config = Store(values.store), preset_of(values.preset).distill_peer
    found = {
        name_of(arm): [losses(store.resolve(monet), arm, config, store) for monet in values.monets]
        for arm in (Sparsity(), *map(arm_of, values.arms))
    }
    dense = [loss for loss, _, _ in found["dense"]]
    CONSOLE.print("| arm | over dense, nats | over Monet, nats | KL, nats |\n| --- | ---: | ---: | ---: |")
    costs: dict[str, tuple[float, float]] = {}
    for name, rows in found.items():
        own, increase, divergence = zip(*rows, strict=True)
        cost = paired(own, dense) if len(rows) > 1 else Interval(mean=own[0] - dense[0], half_width=0.0)
        costs[name] = cost.mean, cost.half_width
        means = f"{statistics.fmean(increase):+.4f} | {statistics.fmean(divergence):.4f}"
        CONSOLE.print(f"| {name} | {cost if len(rows) > 1 else f'{cost.mean:+.4f}'} | {means} |")
    if values.plot:
        values.plot.write_bytes(intervals("Loss over the dense PEER", costs, "nats a token"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
