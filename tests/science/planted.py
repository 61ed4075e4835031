"""Superposition among experts, planted and looked for: `python -m tests.science.planted`, as `make science`.

Level A are records, level C trained layers whose joint codes are enumerated.

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
from tests.other_records import KINDS, Other, plant_other
from tests.planted_records import Planted, Planting, plant
from tests.trained_toys import trained_toy

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

OTHERS = {
    "another generator": Other(),
    "another, 24 labels": Other(seed=1, labels=24),
    "another, 60 strata, short documents": Other(seed=2, strata=60, length=60),
    "another, one stratum, float64": Other(seed=3, strata=1, dtype=torch.float64),
    "another, all in bursts, long documents": Other(seed=6, bursty=1.0, length=600),
    "another, 512 experts, 50,000 tokens": Other(
        seed=4, experts=512, pairs=10, tokens=50_000, noise=0.0, rate=3, often=2.0, dtype=torch.float16
    ),
}
TRAINED = (192, 96, 48, 24)
"""Experts for 96 concepts."""


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
    missed += sum(judge_other(name, of) for name, of in OTHERS.items())
    missed += sum(judge_trained(seed) for seed in range(3))
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


def judge_other(name: str, of: Other) -> bool:
    """True if a record of the second generator falls short of the same."""
    tensors, truth = plant_other(of)
    found = examine(record_of(tensors))
    every = frozenset[tuple[int, int]]().union(*truth.values())
    significant = {(pair.i, pair.j) for pair in found.pairs if pair.significant}
    flagged = {(pair.i, pair.j) for pair in found.pairs if (pair.joint_code_bits or 0) >= LEAST_BITS}
    recall, extra = len(significant & every) / len(every), len(significant - every)
    right, benign = len(flagged & truth["code"]), {kind: len(flagged & truth[kind]) for kind in KINDS[1:]}
    CONSOLE.print(
        f"{name:<40} T1 recall {recall:.3f} extra {extra}; J precision {right / max(len(flagged), 1):.3f} recall "
        f"{right / len(truth['code']):.3f}; flagged of {benign}, of others {len(flagged - every)}; linked "
        f"{found.second_screen.stable} of {found.second_screen.pairs}, by chance {found.second_screen.null_stable}",
        highlight=False,
    )
    return recall < 0.95 or extra > 5 or right < 0.95 * max(len(truth["code"]), len(flagged))


def judge_trained(seed: int) -> bool:
    """True unless joint codes rise as experts get fewer, as in truth, and are few with twice as many as concepts."""
    toys = [trained_toy(experts=experts, active=2, seed=seed) for experts in TRAINED]
    truths, found = [toy.joint_codes for toy in toys], [examine(toy.record).jcs.value or 0.0 for toy in toys]
    for experts, toy, share in zip(TRAINED, toys, found, strict=True):
        CONSOLE.print(
            f"{f'level C, seed {seed}, {experts} experts':<40} accuracy {toy.accuracy:.3f}; joint codes of concepts "
            f"{toy.joint_codes:.3f}, JCS {share:.3f}",
            highlight=False,
        )
    # Below half as many experts as concepts JCS is near its end, and tells no order.
    return sorted(truths) != truths or sorted(found[:3]) != found[:3] or found[0] >= 0.2 or found[3] < 0.8


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
