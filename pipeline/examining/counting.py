"""Counts of co-active pairs, by sorting; the cost grows with the firings and not with the pool."""

# F experts, C pairs

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.examining.firings import Firings

BLOCK = 2**25
"""Entries that are sorted at once: 128 MiB of keys."""
KEYS = 2**32


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Co-active experts by their numbers in Firings, first below second, and on how many tokens both fired."""

    first_C: NDArray[np.int64]
    second_C: NDArray[np.int64]
    count_C: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.count_C)

    def chosen(self, of: NDArray[np.integer] | NDArray[np.bool_] | slice) -> "Pairs":
        return Pairs(first_C=self.first_C[of], second_C=self.second_C[of], count_C=self.count_C[of])

    def joined(self, others: "Pairs") -> "Pairs":
        """These, then the others."""
        return Pairs(
            first_C=np.concatenate([self.first_C, others.first_C]),
            second_C=np.concatenate([self.second_C, others.second_C]),
            count_C=np.concatenate([self.count_C, others.count_C]),
        )


def count_pairs(firings: Firings, least: int) -> Pairs:
    """Every pair that is co-active on `least` tokens or more, in order."""
    # Who fires less often is in no such pair; numbering the others alone keeps the keys short.
    kept_F = firings.fired_F >= least
    number_F = np.full(len(kept_F) + 1, -1, np.int32)  # the last entry is for none, which is -1
    number_F[:-1][kept_F] = np.arange(kept_F.sum(), dtype=np.int32)
    expert_TK = number_F[firings.expert_TK]
    kept = np.flatnonzero(kept_F)
    found = [_count_block(firings, expert_TK, kept, first, last, least) for first, last in _blocks(firings, kept)]
    first_C, second_C, count_C = (np.concatenate([[], *part]).astype(np.int64) for part in _columns(found))
    return Pairs(first_C=kept[first_C], second_C=kept[second_C], count_C=count_C)


def _columns(found: list[tuple[NDArray[np.int64], ...]]) -> list[list[NDArray[np.int64]]]:
    return [[one[column] for one in found] for column in range(3)]


def _blocks(firings: Firings, kept: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of kept experts whose partners fit into a block, and whose keys fit into 32 bits."""
    entries = np.cumsum(firings.fired_F[kept] * firings.expert_TK.shape[1])
    most, first = max(1, KEYS // max(1, len(kept))), 0
    while first < len(kept):
        before = entries[first - 1] if first else 0
        last = int(np.searchsorted(entries, before + BLOCK, side="right"))
        last = min(max(last, first + 1), first + most)
        yield first, last
        first = last


def _count_block(
    firings: Firings, expert_TK: NDArray[np.int32], kept: NDArray[np.int64], first: int, last: int, least: int
) -> tuple[NDArray[np.int64], ...]:
    """Pairs whose first expert is in the range: a key for each event, sorted, and the lengths of runs."""
    tokens = np.concatenate([firings.tokens_of(expert) for expert in kept[first:last]])
    own = np.repeat(np.arange(last - first, dtype=np.uint32), firings.fired_F[kept[first:last]])
    partner_NK = expert_TK[tokens]
    later_NK = partner_NK > (own.astype(np.int32) + np.int32(first))[:, None]
    width = np.uint32(len(kept))
    keys = np.repeat(own * width, later_NK.sum(1)) + partner_NK[later_NK].astype(np.uint32)
    keys.sort()
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint32(1)))
    count = np.diff(starts, append=len(keys))
    often = count >= least
    key = keys[starts[often]].astype(np.int64)
    return key // len(kept) + first, key % len(kept), count[often]
