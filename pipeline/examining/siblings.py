"""Experts of one sub-key of a key grid are co-active by construction: how often, given that the sub-key was selected.

Equations and what they can show: docs/methods/superposition.md.
"""

# F experts, S strata, C pairs, K sub-keys (or cells), N firings

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings

NEITHER, ROW, COLUMN, CELL = RELATIONS = ("neither", "row", "column", "cell")
"""What two experts share. Who shares a cell shares its row and column too, and is judged by the cell alone."""


def relations(firings: Firings, first_C: NDArray[np.int64], second_C: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each pair its place in RELATIONS; neither, where the key grid is not known."""
    if firings.cell_F2 is None:
        return np.zeros(len(first_C), np.int64)
    same_C2 = firings.cell_F2[first_C] == firings.cell_F2[second_C]
    return same_C2[:, 0] + 2 * same_C2[:, 1]


SHRUNK = 20.0
"""Co-activations as by chance that are added before two sub-keys are said to be selected together."""
STEPS = 30
"""Of fitting margins; the ratio of margins is within 1e-3 of 1 after 20 on planted grids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relatives:
    """Pairs of one relation: a row of the table of siblings."""

    relation: str
    pairs_counted: int
    pairs_significant: int
    pairs_tested: int
    """For a joint code, of the significant ones."""
    joint_codes: int
    """Of those."""


class Siblings:
    """How often experts that share a sub-key meet by chance, each as often with its siblings as it does.

    Pairs that are told to be no chance are left out of what chance is fitted to: else one pair that always fires
    together would make its other siblings' chance too small.
    """

    def __init__(self, firings: Firings, fired_FS: sparse.csr_array, relation: int, key_F: NDArray[np.int64]) -> None:
        number, self._key_F = np.unique(key_F, return_inverse=True)
        shape = len(number), len(firings.stratum_tokens_S)
        event_N = np.repeat(np.arange(len(key_F)), firings.fired_F)
        # How many experts of each sub-key fired on each token where any did.
        at_N = firings.token_N.astype(np.int64) * len(number) + self._key_F[event_N]
        at, place_N, fired = np.unique(at_N, return_inverse=True, return_counts=True)
        where = (at % len(number), firings.stratum_T[at // len(number)])
        self.relation, self._fired_FS = relation, fired_FS
        self._of_KF = sparse.csr_array(
            (np.ones(len(key_F)), (self._key_F, np.arange(len(key_F)))), shape=(len(number), len(key_F))
        )
        self._met_F = np.bincount(event_N, fired[place_N] - 1.0, minlength=len(key_F))
        # Of n_i n_j, summed over ordered pairs of siblings, the share that came to pass.
        sums_KS, squares_KS = (
            sparse.csr_array(self._of_KF @ of_FS) for of_FS in (fired_FS, fired_FS.multiply(fired_FS))
        )
        shares_KS = sparse.csr_array(sums_KS.multiply(sums_KS) - squares_KS)
        shares_KS.data = np.divide(1, shares_KS.data, out=np.zeros_like(shares_KS.data), where=shares_KS.data > 0)
        self._share_KS = sparse.csr_array(shares_KS.multiply(_sums(fired * (fired - 1.0), where, shape)))
        self._inclined_F = np.ones(len(key_F))

    def fit(self, first_C: NDArray[np.int64], second_C: NDArray[np.int64], count_C: NDArray[np.int64]) -> None:
        """Finds how inclined each expert is to meet its siblings, but for these pairs and how often they met."""
        experts = len(self._inclined_F)
        ends_2C = np.concatenate([first_C, second_C])
        product_C = self._products(first_C, second_C)
        wanted_F = np.maximum(self._met_F - np.bincount(ends_2C, np.tile(count_C, 2), minlength=experts), 0)
        inclined_F = np.ones(experts)
        share_FS = self._share_KS[self._key_F]
        for _ in range(STEPS):
            weighted_FS = self._fired_FS.multiply(inclined_F[:, None]).tocsr()
            others_FS = (self._of_KF @ weighted_FS)[self._key_F] - weighted_FS
            met_F = np.asarray((weighted_FS * share_FS * others_FS).sum(1)).ravel()
            excluded_C = product_C * inclined_F[first_C] * inclined_F[second_C]
            met_F -= np.bincount(ends_2C, np.tile(excluded_C, 2), minlength=experts)
            ratio_F = np.divide(wanted_F, met_F, out=np.ones(experts), where=met_F > 1e-9)
            inclined_F *= np.sqrt(ratio_F)
        self._inclined_F = inclined_F

    def _products(self, first_C: NDArray[np.int64], second_C: NDArray[np.int64]) -> NDArray[np.float64]:
        one_CS, other_CS = self._fired_FS[first_C], self._fired_FS[second_C]
        return np.asarray((one_CS * other_CS * self._share_KS[self._key_F[first_C]]).sum(1)).ravel()

    def means(
        self, first_C: NDArray[np.int64], second_C: NDArray[np.int64], products_CS: NDArray[np.float64], some: slice
    ) -> NDArray[np.float64]:
        """(C, S) how often pairs meet by chance, of n_i n_j in some of the strata."""
        inclined_C = self._inclined_F[first_C] * self._inclined_F[second_C]
        return self._share_KS[:, some][self._key_F[first_C]].toarray() * inclined_C[:, None] * products_CS


def affinity(
    firings: Firings, pairs: Pairs, expected_C: NDArray[np.float64], but_C: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """By how much siblings meet more since the sub-keys in which they differ are selected together; at least 1.

    Of two experts of a row, that is what experts of the same two columns do in all rows, but for some pairs.
    """
    factor_C, relation_C = np.ones(len(pairs)), relations(firings, pairs.first_C, pairs.second_C)
    if firings.cell_F2 is None:
        return factor_C
    for relation, axis in ((RELATIONS.index(ROW), 1), (RELATIONS.index(COLUMN), 0)):
        own = np.flatnonzero(relation_C == relation)
        key_F = firings.cell_F2[:, axis].astype(np.int64)
        low_C, high_C = np.sort([key_F[of_C[own]] for of_C in (pairs.first_C, pairs.second_C)], axis=0)
        _, place_C = np.unique(low_C * (int(key_F.max(initial=0)) + 1) + high_C, return_inverse=True)
        kept_2C = np.array([pairs.count_C[own], expected_C[own]]) * ~but_C[own]
        # Of all rows but the pair's own.
        met_C, chance_C = (np.bincount(place_C, kept_C)[place_C] - kept_C + SHRUNK for kept_C in kept_2C)
        factor_C[own] = np.maximum(met_C / chance_C, 1)
    return factor_C


def siblings_of(firings: Firings, fired_FS: sparse.csc_array) -> list[Siblings]:
    """Of rows, columns and cells; none where the key grid is not known. `fired_FS` are firings in each stratum."""
    if firings.cell_F2 is None:
        return []
    row_F, column_F = firings.cell_F2.T.astype(np.int64)
    cell_F = row_F * (int(column_F.max(initial=0)) + 1) + column_F
    wide_FS = sparse.csr_array(fired_FS.astype(np.float64))
    return [Siblings(firings, wide_FS, relation, key_F) for relation, key_F in enumerate((row_F, column_F, cell_F), 1)]


def _sums(
    value: NDArray[np.float64], where: tuple[NDArray[np.int64], NDArray[np.int64]], shape: tuple[int, int]
) -> sparse.csr_array:
    return sparse.coo_array((value, where), shape=shape).tocsr()
