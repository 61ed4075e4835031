"""Which tokens a pair is looked at on, and which other pairs are its null: the same expert beside another partner."""

# X rows of the record, U experts that fire on some rows

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.examining.firings import Firings
from pipeline.examining.record import Record

LEAST_TOKENS = 10
"""On which a pair is co-active, for a number to be said of it."""

Ints = NDArray[np.int64]
Placed = tuple[int, int, Ints]
"""Two experts, and the rows on which both are looked at."""


def some_of(row_X: Ints, most: int, rng: np.random.Generator) -> Ints:
    """At most so many of these rows, ascending."""
    return row_X if len(row_X) <= most else np.sort(rng.choice(row_X, most, replace=False))


def partners_of(
    record: Record, firings: Firings, pairs: Sequence[Placed], wanted: int, rng: np.random.Generator
) -> tuple[list[Placed], Ints]:
    """So many pairs (i, another) for the pairs (i, j) given, as evenly as there are some, and which each is for.

    First those partners that fire on LEAST_TOKENS of the pair's own rows, on these, filled up with other rows that they
    share with i; then those that share as many rows elsewhere. Of either, those whose mean contribution is most alike
    to j's: what they do to the logits is only known when it has been measured. No pair that is given is a partner.
    """
    known = {frozenset((i, j)) for i, j, _ in pairs}
    testable = [number for number, (*_, row_X) in enumerate(pairs) if len(row_X) >= LEAST_TOKENS]
    found, of = list[Placed](), list[int]()
    for place, number in enumerate(testable):
        i, j, row_X = pairs[number]
        most = len(found) + math.ceil((wanted - len(found)) / (len(testable) - place))
        for partner in _alike(record, i, j, row_X):
            if len(found) >= most:
                break
            both_X = firings.rows_of_both(i, partner)
            if len(both_X) < LEAST_TOKENS or frozenset((i, partner)) in known:
                continue
            own_X = np.intersect1d(both_X, row_X)
            more_X = some_of(np.setdiff1d(both_X, row_X), len(row_X) - len(own_X), rng)
            found.append((i, partner, np.sort(np.concatenate([own_X, more_X]))))
            of.append(number)
    return found, np.array(of, np.int64)


def _alike(record: Record, i: int, j: int, row_X: Ints) -> list[int]:
    """The experts that fire on these rows beside i and j."""
    expert_N, contribution_N = record.expert_TK[row_X].ravel(), record.contribution_TK[row_X].ravel()
    fires_N = expert_N >= 0
    expert_U, place_N, count_U = np.unique(expert_N[fires_N], return_inverse=True, return_counts=True)
    mean_U = np.maximum(np.bincount(place_N, contribution_N[fires_N]) / count_U, 1e-30)
    apart_U = np.abs(np.log(mean_U / mean_U[np.searchsorted(expert_U, j)]))
    order_U = np.lexsort((apart_U, count_U < LEAST_TOKENS))
    return [int(expert) for expert in expert_U[order_U] if expert not in (i, j)]
