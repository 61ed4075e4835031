"""T1: how often a pair would be co-active by chance, given how often each expert fires in each stratum.

Equations and what they can show: docs/methods/superposition.md.
"""

# F experts, S strata, C pairs, B lengths of blocks

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings
from pipeline.examining.siblings import affinity, relations, siblings_of

FALSE_DISCOVERY_RATE = 0.01
LEAST_COUNT = 6
"""Below it no pair can be significant in a pool that is worth screening: with E = 0.01, 5 give p = 8e-13."""
ROUNDS = 3
STRATA_AT_ONCE = 64
PAIRS_AT_ONCE = 2**17


@dataclass(frozen=True, kw_only=True, slots=True)
class Screen:
    """Pairs beside chance."""

    pairs: Pairs
    expected_C: NDArray[np.float64]
    variance_C: NDArray[np.float64]
    """Of a count by chance, bursts and runs among it."""
    p_C: NDArray[np.float64]
    """Of a count as high as this or higher."""
    significant_C: NDArray[np.bool_]

    @property
    def lift_C(self) -> NDArray[np.float64]:
        return lifts(self.pairs, self.expected_C)

    def chosen(self, of: NDArray[np.integer]) -> "Screen":
        return Screen(
            pairs=self.pairs.chosen(of),
            expected_C=self.expected_C[of],
            variance_C=self.variance_C[of],
            p_C=self.p_C[of],
            significant_C=self.significant_C[of],
        )


def lifts(pairs: Pairs, expected_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts over what chance gives; finite where it gives none."""
    return pairs.count_C / np.maximum(expected_C, 1e-9)


def screen(firings: Firings, pairs: Pairs, rate: float = FALSE_DISCOVERY_RATE) -> Screen:
    """Which pairs are co-active more often than chance, at this false discovery rate over all pairs of the pool."""
    clustered, chance = clustering(firings), Chance(firings)
    inflation_C = np.concatenate(
        [np.ones(0), *(clustered.inflation(pairs.first_C[part], pairs.second_C[part]) for part in _parts(len(pairs)))]
    )
    none_C, runs_C = np.zeros(len(pairs), np.bool_), np.zeros(len(pairs))
    screened = _screened(firings, pairs, chance, inflation_C, runs_C, rate, none_C)
    # What siblings do by chance is fitted to those that are no discovery, which asks for a few rounds.
    for _ in range(ROUNDS if chance.has_siblings else 0):
        screened = _screened(firings, pairs, chance, inflation_C, runs_C, rate, screened.significant_C)
    return screened


def _screened(
    firings: Firings,
    pairs: Pairs,
    chance: "Chance",
    inflation_C: NDArray[np.float64],
    runs_C: NDArray[np.float64],
    rate: float,
    but_C: NDArray[np.bool_],
) -> Screen:
    """`runs_C` has what runs do to the variance of pairs that were looked at so far, and 0 of the others."""
    chance.fit(pairs.chosen(but_C))
    expected_C, variance_C = chance.moments(pairs)
    factor_C = affinity(firings, pairs, expected_C, but_C)
    expected_C, variance_C = expected_C * factor_C, variance_C * factor_C
    tests = firings.experts * (firings.experts - 1) // 2
    burst_C, p_C = variance_C * inflation_C, np.empty(len(pairs))
    for part in _parts(len(pairs)):
        p_C[part] = upper_tail(pairs.count_C[part], expected_C[part], burst_C[part])
    # Only those that pass so far are worth a look at their own tokens; no other can pass after it.
    found = np.flatnonzero(benjamini_hochberg(p_C, rate, tests=tests))
    chosen = pairs.chosen(found)
    new = found[runs_C[found] == 0]
    runs_C[new] = run_inflation(firings, pairs.chosen(new))
    burst_C[found] = variance_C[found] * np.maximum(inflation_C[found], runs_C[found])
    p_C[found] = upper_tail(chosen.count_C, expected_C[found], burst_C[found])
    significant_C = benjamini_hochberg(p_C, rate, tests=tests)
    return Screen(pairs=pairs, expected_C=expected_C, variance_C=burst_C, p_C=p_C, significant_C=significant_C)


def by_frequency_alone(firings: Firings, pairs: Pairs, rate: float = FALSE_DISCOVERY_RATE) -> NDArray[np.bool_]:
    """Which pairs would be discoveries beside the null that every expert is shuffled over all tokens: a comparison,
    since topics, siblings, crowded tokens and bursts pass it."""
    first_C, second_C = (firings.fired_F[of].astype(np.float64) for of in (pairs.first_C, pairs.second_C))
    mean_C = first_C * second_C / firings.tokens
    spare_C = (firings.tokens - first_C) * (firings.tokens - second_C) / max(firings.tokens * (firings.tokens - 1), 1)
    tests = firings.experts * (firings.experts - 1) // 2
    return benjamini_hochberg(upper_tail(pairs.count_C, mean_C, mean_C * spare_C), rate, tests=tests)


def run_inflation(firings: Firings, pairs: Pairs) -> NDArray[np.float64]:
    """Of the variance, where a pair is co-active on tokens in a row, as when a whole set of experts stays on.

    A run of r tokens is one event that counts r times: the sum of r^2 over the sum of r.
    """
    inflation_C, fires_T = np.ones(len(pairs)), np.zeros(firings.tokens, np.bool_)
    order = np.argsort(pairs.first_C, kind="stable")
    begins = np.flatnonzero(np.diff(pairs.first_C[order], prepend=-1))
    for some in np.split(order, begins)[1:]:
        own = firings.tokens_of(int(pairs.first_C[some[0]]))
        fires_T[own] = True
        for part in _parts(len(some), PAIRS_AT_ONCE // 64):
            inflation_C[some[part]] = _of_runs(firings, fires_T, pairs.second_C[some[part]])
        fires_T[own] = False
    return inflation_C


def _of_runs(firings: Firings, fires_T: NDArray[np.bool_], partner_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of one expert, by where it fires, with each of its partners; 1 where two never meet."""
    partners = [firings.tokens_of(partner) for partner in partner_C.tolist()]
    token_X = np.concatenate(partners)
    met_X = fires_T[token_X]
    token, pair = token_X[met_X].astype(np.int64), np.repeat(np.arange(len(partners)), list(map(len, partners)))[met_X]
    if not len(token):
        return np.ones(len(partners))
    document = firings.document_T[token]
    apart = (np.diff(token) != 1) | (np.diff(document) != 0) | (np.diff(pair) != 0)
    starts = np.flatnonzero(np.concatenate([[True], apart]))
    run = np.diff(starts, append=len(token)).astype(np.float64)
    squares_C, events_C = (np.bincount(pair[starts], of, minlength=len(partners)) for of in (run**2, run))
    return np.divide(squares_C, events_C, out=np.ones(len(partners)), where=events_C > 0)


def _parts(pairs: int, at_once: int = PAIRS_AT_ONCE) -> Iterator[slice]:
    return (slice(start, start + at_once) for start in range(0, pairs, at_once))


def benjamini_hochberg(p: NDArray[np.float64], rate: float, *, tests: int) -> NDArray[np.bool_]:
    """Which are discoveries among `tests`, of which those that are not given have p = 1."""
    ascending = np.sort(p)
    passing = np.flatnonzero(ascending <= rate * np.arange(1, len(p) + 1) / max(tests, 1))
    return p <= ascending[passing[-1]] if len(passing) else np.zeros(len(p), np.bool_)


def upper_tail(
    count: NDArray[np.integer], mean: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """P(N >= count) for the binomial, Poisson or negative binomial N that has this mean and variance.

    Within a stratum N is hypergeometric, a sum of independent trials, as is a sum over strata; the binomial of the
    same mean and variance has its tail far out too, where the normal's is too light.
    """
    mean = np.maximum(mean, 1e-300)
    excess = (variance - mean) / mean
    binomial, negative = excess < -1e-9, excess > 1e-9
    with np.errstate(all="ignore"):
        poisson = special.gammainc(count, mean)
        trials = mean / -excess
        below = special.betainc(count, np.maximum(trials - count + 1, 1e-12), -excess)
        above = special.betainc(count, mean / excess, excess / (1 + excess))
    below = np.where(count > trials, 0.0, below)
    p = np.where(binomial, below, np.where(negative, above, poisson))
    return np.where(count <= 0, 1.0, p)


def moments(firings: Firings, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each pair's count, were every expert shuffled over the tokens of each stratum."""
    return Chance(firings).moments(pairs)


class Chance:
    """Firings in each stratum. Siblings of a key grid are shuffled over the tokens that selected what they share."""

    def __init__(self, firings: Firings) -> None:
        event_N = np.repeat(np.arange(len(firings.name_F)), firings.fired_F)
        shape = len(firings.name_F), len(firings.stratum_tokens_S)
        self._firings = firings
        self._fired_FS = _counts(event_N, firings.stratum_T[firings.token_N], *shape)
        self._crowding_S = crowding(firings)
        self._siblings = siblings_of(firings, self._fired_FS)

    @property
    def has_siblings(self) -> bool:
        return bool(self._siblings)

    def fit(self, but: Pairs) -> None:
        """Fits how inclined experts are to meet siblings, but for these pairs."""
        relation_C = relations(self._firings, but.first_C, but.second_C)
        for sibling in self._siblings:
            own = but.chosen(relation_C == sibling.relation)
            sibling.fit(own.first_C, own.second_C, own.count_C)

    def moments(self, pairs: Pairs) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of each pair's count."""
        mean_C, variance_C = np.zeros(len(pairs)), np.zeros(len(pairs))
        for start in range(0, len(self._crowding_S), STRATA_AT_ONCE):
            some = slice(start, start + STRATA_AT_ONCE)
            dense_FS = self._fired_FS[:, some].toarray().astype(np.float64)
            for part in _parts(len(pairs)):
                mean_CS, spare_CS = self._in(pairs.chosen(part), some, dense_FS)
                mean_C[part] += mean_CS.sum(1)
                variance_C[part] += (mean_CS * spare_CS).sum(1)
        return mean_C, variance_C

    def _in(
        self, pairs: Pairs, some: slice, dense_FS: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(C, S) means, and what part of a mean its variance is."""
        a_CS, b_CS = dense_FS[pairs.first_C], dense_FS[pairs.second_C]
        size_S = self._firings.stratum_tokens_S[some].astype(np.float64)
        mean_CS = a_CS * b_CS * (self._crowding_S[some] / size_S)
        spare_CS = (size_S - a_CS) * (size_S - b_CS) / np.maximum(size_S * (size_S - 1), 1)
        relation_C = relations(self._firings, pairs.first_C, pairs.second_C)
        for sibling in self._siblings:
            own = relation_C == sibling.relation
            least_CS = np.minimum(a_CS[own], b_CS[own])
            mean_CS[own] = sibling.means(pairs.first_C[own], pairs.second_C[own], a_CS[own] * b_CS[own], some)
            # On how many tokens a sub-key was selected, and nobody fired, is not known: the seldom expert's firings
            # are so many trials.
            spare_CS[own] = 1 - np.minimum(
                np.divide(mean_CS[own], least_CS, out=np.ones_like(least_CS), where=least_CS > 0), 1
            )
        return mean_CS, spare_CS


def crowding(firings: Firings) -> NDArray[np.float64]:
    """By how much tokens on which many experts fire raise the co-activation of all pairs of a stratum; at least 1.

    Where r_t experts fire on token t by a rate that the token sets for all, E[r(r - 1)] / E[r]^2 is that factor: 1 if
    r is Poisson, less if every token has as many. Less isn't taken: it is a property of who competes with whom.
    """
    fired_T = (firings.expert_TK >= 0).sum(1).astype(np.float64)
    tokens_S = firings.stratum_tokens_S
    mean_S = np.bincount(firings.stratum_T, fired_T) / tokens_S
    pairs_S = np.bincount(firings.stratum_T, fired_T * (fired_T - 1)) / tokens_S
    return np.maximum(1, pairs_S / np.maximum(mean_S**2, 1e-300))


def _counts(row: NDArray[np.int64], column: NDArray[np.int64], rows: int, columns: int) -> sparse.csc_array:
    """How often each row meets each column."""
    ones = np.ones(len(row), np.int32)
    return sparse.coo_array((ones, (row, column)), shape=(rows, columns)).tocsc()


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustering:
    """How experts fire in bursts: their correlation at B distances in the text, beyond what their strata explain."""

    correlation_FB: NDArray[np.float32]
    partners_B: NDArray[np.float64]
    """Other tokens of the document and stratum at each distance, the mean over tokens."""

    def inflation(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of the variance of a pair's count: two that burst independently meet in bursts. At least 1."""
        products_CB = self.correlation_FB[first] * self.correlation_FB[second]
        return np.maximum(1, 1 + products_CB @ self.partners_B)


def clustering(firings: Firings) -> Clustering:
    """Correlations in blocks of 2, 4, ... tokens; what a length adds to the half of it is one distance."""
    group_T = firings.document_T * len(firings.stratum_tokens_S) + firings.stratum_T
    begins_T = np.diff(group_T, prepend=-1) != 0
    place_T = np.arange(firings.tokens) - np.maximum.accumulate(np.where(begins_T, np.arange(firings.tokens), 0))
    rate_F, spread_F = _rates(firings)
    event_N = np.repeat(np.arange(len(firings.name_F)), firings.fired_F)
    correlations, partners = [], []
    together_F, ordered = np.zeros(len(firings.name_F)), 0.0
    for length in range(1, int(place_T.max()).bit_length() + 1):
        block_T = np.cumsum(begins_T | (place_T % 2**length == 0))
        size = np.bincount(block_T).astype(np.float64)
        now, now_F = float((size * (size - 1)).sum()), _together(firings, event_N, block_T)
        added = now - ordered
        excess_F, most_F = now_F - together_F - added * rate_F, added * spread_F
        # Who fires on nearly every token, or at a distance that no two tokens have, shows no clustering.
        correlations.append(np.divide(excess_F, most_F, out=np.zeros_like(excess_F), where=most_F > 1e-6))
        partners.append(added / firings.tokens)
        together_F, ordered = now_F, now
    correlation_FB = np.stack(correlations, axis=1) if correlations else np.zeros((len(rate_F), 0))
    return Clustering(correlation_FB=correlation_FB.astype(np.float32), partners_B=np.array(partners))


def _rates(firings: Firings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each expert, over tokens: the mean of p^2 and of p (1 - p), p its share of the token's stratum."""
    event_N = np.repeat(np.arange(len(firings.name_F)), firings.fired_F)
    strata = len(firings.stratum_tokens_S)
    fired = _counts(event_N, firings.stratum_T[firings.token_N], len(firings.name_F), strata).tocoo()
    tokens = firings.stratum_tokens_S[fired.col].astype(np.float64)
    # n (n - 1) / (T (T - 1)) has the mean p^2, where n^2 / T^2 has not.
    square = fired.data * (fired.data - 1.0) / np.maximum(tokens - 1, 1)
    square_F = np.bincount(fired.row, square, minlength=len(firings.name_F)) / firings.tokens
    return square_F, np.maximum(firings.fired_F / firings.tokens - square_F, 0)


def _together(firings: Firings, event_N: NDArray[np.int64], block_T: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ordered pairs of firings of each expert in one block."""
    block_N = block_T[firings.token_N]
    begins = np.flatnonzero((np.diff(block_N, prepend=-1) != 0) | (np.diff(event_N, prepend=-1) != 0))
    run = np.diff(begins, append=len(block_N)).astype(np.float64)
    return np.bincount(event_N[begins], run * (run - 1), minlength=len(firings.name_F)).astype(np.float64)
