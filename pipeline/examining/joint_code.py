"""T4: does a pair say together what neither says alone, and what their meanings don't compose to? J, in bits.

Equations, and what the number can show: docs/methods/superposition.md.
"""

# T tokens, Q cells of a stratum and a label, S strata, L labels that are told apart, M components, D draws

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.examining.firings import Firings

LEAST_TOKENS = 10
"""Of each of the states both, first alone, second alone and neither."""
LEAST_BITS = 0.5
"""From here on a pair is a joint code."""
DEVIATIONS = 5.0
"""Of the bootstrap, that J has to lie above its mean: what is left is printed as J."""
TAIL = 1e-6
"""Of the gamma distribution that has the bootstrap's mean and deviation: J has to lie above that too."""
ALIKE_BITS = 0.25
TOLD_APART = 12
"""Labels of each state; all others are one label."""
LABEL_TOKENS = 5
"""Of a state, that a label needs to be told apart: of many rare labels some come up twice by chance."""
DRAWS = 50
STEPS = 50
KEPT = 1_000
"""Experts whose counts are kept for their next pair."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class JointCode:
    """What labels say of a pair."""

    tokens: int
    """With a label, on which both fire."""
    too_few: int | None = None
    """Tokens of the scarcest state where they are fewer than LEAST_TOKENS: then there are no numbers."""
    scarce: str = ""
    """That state: both, alone or neither."""
    bits: float = 0.0
    """J above what chance does not exceed; never below 0."""
    estimate_bits: float = 0.0
    """J above the mean of what chance gives."""
    deviations: float = 0.0
    """J above that mean, in standard deviations."""
    alike: bool = False
    """Either alone says what both say, and it is news beside what neither says."""


class JointCodes:
    """Tests pairs of one record."""

    def __init__(self, firings: Firings, rng: np.random.Generator) -> None:
        self._firings, self._rng = firings, rng
        labelled_T = firings.label_T >= 0
        keys = firings.stratum_T[labelled_T] * firings.labels + firings.label_T[labelled_T]
        key, cell, self._all_Q = np.unique(keys, return_inverse=True, return_counts=True)
        self._stratum_Q, self._label_Q = key // max(firings.labels, 1), key % max(firings.labels, 1)
        self._cell_T = np.full(firings.tokens, len(key))  # the last is for tokens without a label
        self._cell_T[labelled_T] = cell
        self._of_expert = functools.lru_cache(maxsize=KEPT)(lambda expert: self._cells(firings.tokens_of(expert)))

    def test(self, first: int, second: int) -> JointCode:
        """J of a pair, by the experts' numbers."""
        both_Q = self._cells(self._firings.both(first, second))
        one_Q, other_Q = (self._of_expert(expert) - both_Q for expert in (first, second))
        states = (both_Q, one_Q, other_Q, self._all_Q - both_Q - one_Q - other_Q)
        both, one, other, neither = (int(state.sum()) for state in states)
        sizes = {"both": both, "alone": min(one, other), "neither": neither}
        scarce = min(sizes, key=lambda state: sizes[state])
        if sizes[scarce] < LEAST_TOKENS:
            return JointCode(tokens=both, too_few=sizes[scarce], scarce=scarce)
        counts = [self._by_label(state) for state in states]
        told = _told_apart(counts[:3])
        pooled = [_pooled(count, told) for count in counts]
        # What the strata where both fire say by themselves is no joint code: states also enter as they are there.
        there = [_pooled(self._there(both_Q, state, count), told) for state, count in zip(states, counts, strict=True)]
        return self._measured(pooled[0], [pooled[1:], there[1:]] if self._stratum_Q.any() else [pooled[1:]])

    def _cells(self, tokens: NDArray[np.integer]) -> NDArray[np.int64]:
        """How many of these tokens are of each stratum and label."""
        return np.bincount(self._cell_T[tokens], minlength=len(self._all_Q) + 1)[:-1]

    def _by_label(self, cells_Q: NDArray[np.number]) -> Floats:
        return np.bincount(self._label_Q, cells_Q, minlength=self._firings.labels).astype(np.float64)

    def _there(self, both_Q: NDArray[np.int64], state_Q: NDArray[np.int64], count: Floats) -> Floats:
        """Labels of a state, weighted to the strata where both fire, and counted as what that leaves of its tokens.

        Without the weights where too little is left: a token or two that stand for a stratum are no evidence.
        """
        where_S, tokens_S = (np.bincount(self._stratum_Q, cells) for cells in (both_Q, state_Q))
        weight_S = np.divide(where_S, tokens_S, out=np.zeros(len(where_S)), where=tokens_S > 0)
        total = (weight_S * tokens_S).sum()
        effective = total**2 / max((weight_S**2 * tokens_S).sum(), 1e-300)  # Kish
        if effective < LEAST_TOKENS:
            return count
        return self._by_label(state_Q * weight_S[self._stratum_Q]) * (effective / total)

    def _measured(self, both: Floats, weightings: list[list[Floats]]) -> JointCode:
        """From counts of labels: of both, and of first alone, second alone and neither in each weighting."""
        n = int(both.sum())
        sources = [source for of in weightings for source in of[:2]]
        grounds = [_smoothed(of[2]) for of in weightings]
        meanings = [_shrunk(source, grounds[place // 2]) for place, source in enumerate(sources)]
        fit = _best_mixture(both[None], _components([meaning[None] for meaning in meanings], grounds))[0]
        bits = _divergence(both[None] / n, fit[None])[0]
        # Chance: the fit is the truth, and every state is drawn anew.
        drawn = self._rng.multinomial(n, fit / fit.sum(), size=DRAWS).astype(np.float64)
        redrawn = [
            _shrunk(
                self._rng.multinomial(round(float(source.sum())), meaning / meaning.sum(), DRAWS), grounds[place // 2]
            )
            for place, (source, meaning) in enumerate(zip(sources, meanings, strict=True))
        ]
        null = _divergence(drawn / n, _best_mixture(drawn, _components(redrawn, grounds)))
        mean, deviation = float(null.mean()), float(null.std(ddof=1)) + 1e-9
        says = _shrunk(both, grounds[0])
        alike = max(_divergence(says[None], meaning[None])[0] for meaning in meanings[:2]) < ALIKE_BITS
        return JointCode(
            tokens=n,
            bits=max(0.0, float(bits) - _bound(mean, deviation)),
            estimate_bits=float(bits) - mean,
            deviations=(float(bits) - mean) / deviation,
            alike=bool(alike and _divergence(says[None], grounds[0][None])[0] >= LEAST_BITS),
        )


def _bound(mean: float, deviation: float) -> float:
    """What chance does not exceed: five deviations above its mean, or a gamma's tail where that is skewed."""
    shape = (mean / deviation) ** 2
    tail = float(stats.gamma.isf(TAIL, shape, scale=deviation**2 / mean)) if mean > 0 else 0.0
    return max(mean + DEVIATIONS * deviation, tail)


def _told_apart(counts: Sequence[Floats]) -> NDArray[np.integer]:
    told = [np.argsort(-count, kind="stable")[:TOLD_APART] for count in counts]
    return np.unique(np.concatenate([of[count[of] >= LABEL_TOKENS] for of, count in zip(told, counts, strict=True)]))


def _pooled(count: Floats, told: NDArray[np.integer]) -> Floats:
    return np.append(count[told], max(count.sum() - count[told].sum(), 0))


def _smoothed(count: Floats) -> Floats:
    return (count + 0.5) / (count.sum() + 0.5 * len(count))


def _shrunk(count: NDArray[np.number], ground: Floats) -> Floats:
    """A state's shares, with what one token of each label, and one token more, say given to what neither says.

    So a label that the state shows never or once is as rare as the ground has it. A constant added instead would make
    the product of two states large for each label that all lack; and one noisy token in each of two small states,
    over a ground of 1e-4, would look as if both foretold its label.
    """
    sure = np.maximum(count - 1, 0)
    left = count.sum(-1, keepdims=True) - sure.sum(-1, keepdims=True) + 1
    return (sure + left * ground) / (count.sum(-1, keepdims=True) + 1)


def _components(meanings: list[Floats], grounds: list[Floats]) -> Floats:
    """[draws, M, L]: first alone, second alone, neither, and the product of their meanings, for each weighting."""
    components = []
    for place, ground in enumerate(grounds):
        one, other = meanings[2 * place], meanings[2 * place + 1]
        product = one * other / ground
        components += [one, other, np.broadcast_to(ground, one.shape), product / product.sum(-1, keepdims=True)]
    return np.stack(components, axis=1)


def _best_mixture(count_DL: Floats, component_DML: Floats) -> Floats:
    """The mixture of the components under which the counts are likeliest, by expectation maximisation."""
    draws, components, _ = component_DML.shape
    weight_DM = np.full((draws, components), 1 / components)
    total_D1 = count_DL.sum(1, keepdims=True)
    for _ in range(STEPS):
        mixed_DL = np.einsum("dm,dml->dl", weight_DM, component_DML)
        weight_DM = weight_DM * np.einsum("dml,dl->dm", component_DML, count_DL / mixed_DL) / total_D1
    return np.einsum("dm,dml->dl", weight_DM, component_DML)


def _divergence(share_DL: Floats, fit_DL: Floats) -> Floats:
    """KL(share || fit), in bits."""
    ratio = np.divide(share_DL, fit_DL, out=np.ones_like(share_DL), where=share_DL > 0)
    return (share_DL * np.log2(ratio)).sum(1)
