"""Hidden functions, planted at level B and looked for: `python -m tests.science.hidden`, as `make science`.

Prints a row for each planting and ends with 1 if one misses what docs/methods/superposition.md claims: all hidden pairs
flagged and no other; without the condition that additive logits fail about a third of what is flagged is right.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from pipeline.examining.second_difference import PairDifference, SecondDifferenceConfig, differences_of
from tests.planted_records import Pair, Planting, plant
from tests.planted_states import wire

CONSOLE = Console(width=160)
LEVEL_B = Planting(tokens=200_000)
PLANTINGS = {
    "level B, seed 0": LEVEL_B,
    "level B, seed 1": replace(LEVEL_B, seed=1),
    "level B, seed 2": replace(LEVEL_B, seed=2),
    "3 active": replace(LEVEL_B, seed=3, active=3),
    "10 active, 20 topics": replace(LEVEL_B, seed=4, active=10, topics=20),
}
CONFIG = SecondDifferenceConfig(partners=4_000)


def main(arguments: Sequence[str]) -> int:
    """Those plantings whose names hold any of the arguments, or all."""
    missed = [
        judge(name, of) for name, of in PLANTINGS.items() if not arguments or any(word in name for word in arguments)
    ]
    return 1 if any(missed) else 0


def judge(name: str, of: Planting) -> bool:
    """Prints what was found of the truth. True if it falls short of what is claimed."""
    planted = plant(of)
    states, record, hidden = wire(planted, seed=of.seed)
    found = differences_of(states, record, sorted(planted.all), CONFIG, seed=of.seed)
    if found.null.threshold is None:
        CONSOLE.print(f"{name:<24} {found.null.not_testable}", highlight=False)
        return True
    flagged = {(pair.i, pair.j) for pair in found.pairs if pair.hidden}
    above = {(pair.i, pair.j) for pair in found.pairs if (pair.iota or 0) > found.null.threshold}
    right, alive = len(flagged & hidden), len(above & hidden) / max(len(above), 1)
    CONSOLE.print(
        f"{name:<24} precision {right / max(len(flagged), 1):.3f} recall {right / len(hidden):.3f}; without the argmax "
        f"precision {alive:.3f}; null {len(found.null.iota_X)} of {found.null.tried}, 99 % {found.null.threshold:.3f}; "
        f"median iota, failure, loss, curvature:",
        highlight=False,
    )
    groups = {"hidden": hidden, "linear": planted.code - hidden, "composed": planted.composed}
    for group, truth in (groups | {"redundant": planted.redundant}).items():
        print_group(group, [pair for pair in found.pairs if (pair.i, pair.j) in truth], truth)
    return flagged != hidden or not 0.25 < alive < 0.45


def print_group(name: str, pairs: Sequence[PairDifference], truth: frozenset[Pair]) -> None:
    """Medians over the pairs of one kind."""
    names = ("iota", "additive_failure", "loss_difference_nats", "loss_curvature_nats")
    medians = [float(np.median([getattr(pair, of) for pair in pairs])) for of in names]
    CONSOLE.print(
        f"    {name:<12} {len(truth):>3}  " + "  ".join(f"{median:6.3f}" for median in medians), highlight=False
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
