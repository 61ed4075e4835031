"""The second screen: which pairs keep a link of their own once the others are known. Nodewise LASSO, with resampling.

Equations, and what the number can show: docs/methods/superposition.md.
"""

# T tokens, V experts that are looked at, C pairs, S strata, G parts of the text, H halves of it, Q regressions at once,
# K neighbours of an expert, M an expert and its neighbours

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.examining.chance import Screen
from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings

STABLE = 0.75
"""Of the halves, in which a link has to be chosen."""
PENALTY = 3.0
"""Standard deviations of chance in half of the text, which a link has to exceed."""
PARTS = 10
HALVES = 20
NEIGHBOURS = 64
MOST_EXPERTS = 4096
"""Of the pairs that are surveyed, those of the most frequent pairs."""
AT_ONCE = 64
SWEEPS = 100
CLOSE = 1e-3
RIDGE = 1e-3
"""On correlations: two experts that never part have no inverse."""
SHIFTED = 200
"""Experts that are moved along the text for the null."""

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """How the second screen sees the pairs."""

    stability_C: Floats
    """Share of halves that choose a positive link, in the direction where it is rarer; NaN where it was not asked."""
    null_links: int
    null_stable: int
    """Of links of experts that were moved along the text: those in STABLE of the halves or more."""


def partial_links(
    firings: Firings, screened: Screen, surveyed: Pairs, pairs: Pairs, rng: np.random.Generator
) -> Partial:
    """Of the pairs, as far as their experts are those of surveyed ones. An expert is told by its strongest partners."""
    chosen = _experts(surveyed)
    if not len(chosen):
        return Partial(stability_C=np.full(len(pairs), np.nan), null_links=0, null_stable=0)
    number_F = np.full(len(firings.name_F), -1)
    number_F[chosen] = np.arange(len(chosen))
    neighbours = _neighbours(screened, number_F, len(chosen))
    text = _Text(firings, chosen, rng)
    halves_HG = _halves(rng)
    links: dict[tuple[int, int], float] = {}
    null = [0, 0]
    shifted = set(rng.permutation(len(chosen))[:SHIFTED].tolist())
    for some in _blocks(neighbours):
        problems = [text.covariance(expert, neighbours[expert][0]) for expert in some]
        penalties = [neighbours[expert][1] for expert in some]
        for expert, stability_K in zip(some, _stability(problems, penalties, halves_HG), strict=True):
            links |= {(expert, int(k)): float(s) for k, s in zip(neighbours[expert][0], stability_K, strict=True)}
        moved = [place for place, expert in enumerate(some) if expert in shifted]
        problems = [text.moved(problems[place], some[place], neighbours[some[place]][0]) for place in moved]
        for stability_K in _stability(problems, [penalties[place] for place in moved], halves_HG):
            null[0] += len(stability_K)
            null[1] += int((stability_K >= STABLE).sum())
    first_C, second_C = number_F[pairs.first_C], number_F[pairs.second_C]
    ends = list(zip(first_C.tolist(), second_C.tolist(), strict=True))
    found = [[links.get(way, np.nan) for way in ((one, other), (other, one))] for one, other in ends]
    # A direction in which the other isn't among the strongest was not asked; fmin leaves it out.
    stability_C = np.fmin(*np.array(found, np.float64).reshape(-1, 2).T)
    return Partial(stability_C=stability_C, null_links=null[0], null_stable=null[1])


def _experts(pairs: Pairs) -> NDArray[np.int64]:
    """Those of the most frequent pairs, ascending."""
    often = np.argsort(-pairs.count_C, kind="stable")
    ends = np.stack([pairs.first_C[often], pairs.second_C[often]], axis=1).ravel()
    expert, at = np.unique(ends, return_index=True)
    return np.sort(expert[np.argsort(at)[:MOST_EXPERTS]])


def _neighbours(screened: Screen, number_F: Ints, experts: int) -> list[tuple[Ints, Floats]]:
    """Of each expert: its strongest partners, and the deviation of chance of each count."""
    first_C, second_C = number_F[screened.pairs.first_C], number_F[screened.pairs.second_C]
    excess_C = screened.pairs.count_C - screened.expected_C
    own = np.flatnonzero((first_C >= 0) & (second_C >= 0) & (excess_C > 0))
    deviation = np.sqrt(np.maximum(screened.variance_C[own], 1e-12))
    one, other = np.concatenate([[first_C[own], second_C[own]], [second_C[own], first_C[own]]], axis=1)
    strength, deviation = np.tile(excess_C[own] / deviation, 2), np.tile(deviation, 2)
    order = np.lexsort((-strength, one))
    starts = np.searchsorted(one[order], np.arange(experts + 1))
    parts = [order[start : min(start + NEIGHBOURS, stop)] for start, stop in itertools.pairwise(starts)]
    return [(other[part], deviation[part]) for part in parts]


def _blocks(neighbours: list[tuple[Ints, Floats]]) -> Iterator[list[int]]:
    """Experts that have any, those with as many together."""
    with_any = [expert for expert, (partners, _) in enumerate(neighbours) if len(partners)]
    with_any.sort(key=lambda expert: len(neighbours[expert][0]))
    return (with_any[start : start + AT_ONCE] for start in range(0, len(with_any), AT_ONCE))


def _halves(rng: np.random.Generator) -> Floats:
    """Complementary halves of the parts."""
    half = np.stack([rng.permutation(PARTS) < PARTS // 2 for _ in range(HALVES // 2)])
    return np.concatenate([half, ~half]).astype(np.float32)


class _Text:
    """Covariances of experts in each part of the text, within strata."""

    def __init__(self, firings: Firings, chosen: Ints, rng: np.random.Generator) -> None:
        self._part_T = _part_of(firings, rng)
        self._tokens = [firings.tokens_of(int(expert)) for expert in chosen]
        tokens = np.concatenate(self._tokens)
        expert_N = np.repeat(np.arange(len(chosen)), [len(of) for of in self._tokens])
        shape = firings.tokens, len(chosen)
        self._fires_TV = sparse.csr_array((np.ones(len(tokens), np.float32), (tokens, expert_N)), shape=shape)
        self._count()
        strata = len(firings.stratum_tokens_S)
        self._place_T = self._part_T * strata + firings.stratum_T  # of a part and stratum
        self._size_X = np.bincount(self._place_T, minlength=PARTS * strata)
        self._rate_VX = self._rates(expert_N, tokens, len(chosen))
        self._moved_T = _shifts(firings.stratum_T, rng)

    def _count(self) -> None:
        """How many tokens of each part two experts share, by a key of the two."""
        experts = len(self._tokens)
        whole = sparse.triu(self._fires_TV.T @ self._fires_TV, format="coo")
        self._key_C = np.sort(whole.row.astype(np.int64) * experts + whole.col)
        self._count_CG = np.zeros((len(self._key_C), PARTS), np.float32)
        for part in range(PARTS):
            fires_TV = self._fires_TV[self._part_T == part]
            both = sparse.triu(fires_TV.T @ fires_TV, format="coo")
            place = np.searchsorted(self._key_C, both.row.astype(np.int64) * experts + both.col)
            self._count_CG[place, part] = both.data

    def _rates(self, row: Ints, tokens: Ints, rows: int) -> sparse.csr_array:
        """Firings in each part and stratum over the root of its tokens: products of two are what chance gives."""
        place = self._place_T[tokens]
        value = (1 / np.sqrt(np.maximum(self._size_X, 1)))[place]
        return sparse.coo_array((value, (row, place)), shape=(rows, len(self._size_X))).tocsr()

    def covariance(self, expert: int, partners: Ints) -> Floats:
        """(G, M, M) of the expert, which comes first, and its partners."""
        members = np.concatenate([[expert], partners])
        low, high = np.minimum(members[:, None], members), np.maximum(members[:, None], members)
        key = low * len(self._tokens) + high
        place = np.minimum(np.searchsorted(self._key_C, key), len(self._key_C) - 1)
        count_MMG = np.where((self._key_C[place] == key)[..., None], self._count_CG[place], 0)
        rate_MGS = self._rate_VX[members].toarray().reshape(len(members), PARTS, -1)
        return np.moveaxis(count_MMG, -1, 0) - np.einsum("mgs,ngs->gmn", rate_MGS, rate_MGS, optimize=True)

    def moved(self, covariance_GMM: Floats, expert: int, partners: Ints) -> Floats:
        """The same, the expert's firings moved along the text of each stratum: what it has to do with partners is
        chance, and it fires in bursts as before."""
        tokens = self._moved_T[self._tokens[expert]]
        shape = PARTS, len(tokens)
        of_GN = sparse.coo_array((np.ones(len(tokens)), (self._part_T[tokens], np.arange(len(tokens)))), shape=shape)
        both_GK = (of_GN.tocsr() @ self._fires_TV[tokens]).toarray()[:, partners]
        rate_GS = self._rates(np.zeros(len(tokens), np.int64), tokens, 1).toarray().reshape(PARTS, -1)
        partner_KGS = self._rate_VX[partners].toarray().reshape(len(partners), PARTS, -1)
        covariance_GMM = covariance_GMM.copy()
        covariance_GMM[:, 0, 0] = np.bincount(self._part_T[tokens], minlength=PARTS) - (rate_GS**2).sum(1)
        covariance_GMM[:, 0, 1:] = both_GK - np.einsum("gs,kgs->gk", rate_GS, partner_KGS)
        covariance_GMM[:, 1:, 0] = covariance_GMM[:, 0, 1:]
        return covariance_GMM


def _part_of(firings: Firings, rng: np.random.Generator) -> Ints:
    """PARTS parts of about as many tokens: whole documents, or stretches of text where documents are few or long."""
    length = np.bincount(firings.document_T)
    if length.max() > firings.tokens / (2 * PARTS):
        return np.arange(firings.tokens) * PARTS // firings.tokens
    order = rng.permutation(len(length))
    part = np.empty(len(length), np.int64)
    part[order] = (np.cumsum(length[order]) - 1) * PARTS // firings.tokens
    return part[firings.document_T]


def _shifts(stratum_T: Ints, rng: np.random.Generator) -> Ints:
    """Where each token goes if every stratum is turned by a stretch of its own."""
    order = np.argsort(stratum_T, kind="stable")
    size_S = np.bincount(stratum_T)
    start_S = np.cumsum(size_S) - size_S
    offset_S = rng.integers(0, np.maximum(size_S, 1))
    of = stratum_T[order]
    rank = np.arange(len(order)) - start_S[of]
    moved_T = np.empty(len(order), np.int64)
    moved_T[order] = order[start_S[of] + (rank + offset_S[of]) % size_S[of]]
    return moved_T


def _stability(problems: list[Floats], deviations: list[Floats], halves_HG: Floats) -> list[Floats]:
    """(K) of each problem: in which share of the halves its first expert is linked to each of the others."""
    if not problems:
        return []
    width, halves = max(len(of) for of in deviations), len(halves_HG)
    gram_QKK = np.tile(np.eye(width, dtype=np.float32), (len(problems) * halves, 1, 1))
    own_QK, penalty_QK = np.zeros(gram_QKK.shape[:2], np.float32), np.full(gram_QKK.shape[:2], np.inf, np.float32)
    for place, (covariance_GMM, deviation_K) in enumerate(zip(problems, deviations, strict=True)):
        members, at = len(deviation_K) + 1, slice(place * halves, (place + 1) * halves)
        covariance_HMM = np.tensordot(halves_HG, covariance_GMM, axes=1)
        spread_HM = np.sqrt(np.maximum(np.einsum("hmm->hm", covariance_HMM), 1e-9))
        correlation_HMM = covariance_HMM / (spread_HM[:, :, None] * spread_HM[:, None])
        gram_QKK[at, : members - 1, : members - 1] = correlation_HMM[:, 1:, 1:]
        own_QK[at, : members - 1] = correlation_HMM[:, 0, 1:]
        chance_HK = PENALTY * deviation_K / np.sqrt(2) / (spread_HM[:, :1] * spread_HM[:, 1:])
        penalty_QK[at, : members - 1] = chance_HK
    linked_QK = lasso(gram_QKK, own_QK, penalty_QK) > 0
    share = linked_QK.reshape(len(problems), halves, width).mean(1)
    return [share_K[: len(of)] for share_K, of in zip(share, deviations, strict=True)]


def lasso(gram_QKK: Floats, own_QK: Floats, penalty_QK: Floats) -> Floats:
    """The weights b that make b'Gb/2 - b'c + sum of penalty |b| least, by coordinate descent; G has a diagonal of 1.

    A thousand small problems at once: scikit-learn takes one at a time, and the time of a call for each.
    """
    gram_KQK = np.ascontiguousarray(np.moveaxis(gram_QKK, 1, 0))
    rest_QK, weight_QK = own_QK.copy(), np.zeros_like(own_QK)
    for _ in range(SWEEPS):
        most = 0.0
        for k in range(own_QK.shape[1]):
            alone_Q = rest_QK[:, k] + weight_QK[:, k]
            new_Q = np.sign(alone_Q) * np.maximum(np.abs(alone_Q) - penalty_QK[:, k], 0) / (1 + RIDGE)
            step_Q = new_Q - weight_QK[:, k]
            if (largest := float(np.abs(step_Q).max())) > 0:
                rest_QK -= gram_KQK[k] * step_Q[:, None]
                weight_QK[:, k], most = new_Q, max(most, largest)
        if most < CLOSE:
            break
    return weight_QK
