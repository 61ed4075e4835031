"""T1 at scale: `python -m tests.benchmarks.co_activation TOKENS EXPERTS`; 32 active a token, by a Zipf law of 0.7."""

import resource
import sys
import time

import numpy as np
import torch
from rich.console import Console

from pipeline.examining.chance import LEAST_COUNT, screen
from pipeline.examining.counting import count_pairs
from pipeline.examining.firings import firings_of
from pipeline.examining.record import record_of

ACTIVE = 32
CONSOLE = Console(width=120)


def main(tokens: int, experts: int) -> None:
    rng = np.random.default_rng(0)
    upto = np.cumsum(np.arange(1, experts + 1) ** -0.7)
    place = np.searchsorted(upto / upto[-1], rng.random((tokens, ACTIVE)))
    document = torch.arange(tokens) // 256
    record = record_of(
        {
            "expert": torch.from_numpy(rng.permutation(experts).astype(np.int32)[place]),
            "contribution": torch.ones(tokens, ACTIVE, dtype=torch.float16),
            "token": document,
            "label": document % 50,
            "document": document,
            "stratum": document % 8,
            "experts": torch.tensor(experts),
        }
    )
    firings = firings_of(record)
    clock, cpu = time.monotonic(), time.process_time()
    pairs = count_pairs(firings, LEAST_COUNT)
    counted = time.process_time()
    found = screen(firings, pairs)
    done = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    CONSOLE.print(
        f"{tokens:,} tokens, {experts:,} experts: {len(pairs):,} pairs in {counted - cpu:.1f} s of a core, chance "
        f"{done - counted:.1f} s, {time.monotonic() - clock:.1f} s by the clock, {peak:.2f} GB at most, "
        f"{int(found.significant_C.sum())} significant"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
