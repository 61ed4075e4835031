"""Superposition among experts, planted at level A and looked for: `python -m tests.science.planted`, as `make science`.

Prints a row for each planting and ends with 1 if one misses what docs/methods/superposition.md claims. Plantings differ
in seed, noise, text, activity, topics and in how redundant redundant pairs are. Shuffled labels must flag nothing.
"""

import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from pipeline.examining.battery import Examination, examine
from pipeline.examining.joint_code import LEAST_BITS
from pipeline.examining.record import record_of
from tests.planted_records import Planted, Planting, plant

CONSOLE = Console(width=160)
PLANTINGS = {
    "level A, seed 0": Planting(),
    "level A, seed 1": Planting(seed=1),
    "level A, seed 2": Planting(seed=2),
    "30 % label noise": Planting(seed=3, noise=0.3),
    "no noise, 1,500 experts": Planting(seed=4, noise=0.0, experts=1500, background=700, solo=100),
    "50 % noise, 30 topics, documents of 64": Planting(seed=5, noise=0.5, topics=30, document=64),
    "2 active, both on 60 %": Planting(seed=6, active=2, topics=3, both=0.6),
    "12 active": Planting(seed=7, active=12),
}


def main(arguments: Sequence[str]) -> int:
    """Those plantings whose names hold any of the arguments, or all."""
    missed = 0
    for name, of in PLANTINGS.items():
        if arguments and not any(word in name for word in arguments):
            continue
        planted = plant(of)
        missed += judge(name, planted, examine(record_of(planted.tensors)))
    planted = plant(Planting())
    order = torch.randperm(Planting().tokens, generator=torch.Generator().manual_seed(0))
    shuffled = planted.tensors | {"label": planted.tensors["label"][order]}
    missed += judge_shuffled(examine(record_of(shuffled)))
    return 1 if missed else 0


def judge(name: str, planted: Planted, found: Examination) -> bool:
    """Prints how much of the truth was found. True if it falls short of what is claimed."""
    significant = {(pair.i, pair.j) for pair in found.pairs if pair.significant}
    flagged = {(pair.i, pair.j) for pair in found.pairs if (pair.joint_code_bits or 0) >= LEAST_BITS}
    recall, extra = len(significant & planted.all) / len(planted.all), len(significant - planted.all)
    right = len(flagged & planted.code)
    precision, code_recall = right / max(len(flagged), 1), right / len(planted.code)
    benign = [len(flagged & kind) for kind in (planted.composed, planted.redundant)]
    CONSOLE.print(
        f"{name:<40} T1 recall {recall:.3f} extra {extra}; J precision {precision:.3f} recall {code_recall:.3f}; "
        f"flagged of composed {benign[0]}, of redundant {benign[1]}, of others {len(flagged - planted.all)}",
        highlight=False,
    )
    return recall < 0.98 or extra > 5 or precision < 0.95 or code_recall < 0.95 or max(benign) > 2


def judge_shuffled(found: Examination) -> bool:
    """True if labels that say nothing flag a pair."""
    flagged = sum((pair.joint_code_bits or 0) >= LEAST_BITS for pair in found.pairs)
    CONSOLE.print(f"{'shuffled labels, level A, seed 0':<40} flagged {flagged} of {len(found.pairs)}", highlight=False)
    return flagged > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
