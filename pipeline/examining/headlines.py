"""JCS: the share of co-activity that is joint codes', with an interval over documents."""

# C pairs, R draws, P documents

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings

CONFIDENCE = 0.95
LEAST_DOCUMENTS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """A share and its 95 % interval over documents; without a value, why not."""

    value: float | None
    low: float | None = None
    high: float | None = None
    not_testable: str | None = None

    def less_than_one(self) -> "Headline":
        """1 less this share."""
        value, low, high = (None if of is None else 1 - of for of in (self.value, self.low, self.high))
        return Headline(value=value, low=high, high=low, not_testable=self.not_testable)


def mean_share(found_R: NDArray[np.float64], document_R: NDArray[np.int64]) -> Headline:
    """Of draws, those that are 1."""
    # Draws that found nothing, or all, still leave half of one in doubt.
    doubt = (found_R.sum() + 0.5) / (len(found_R) + 1)
    share = mean_ratio(
        found_R, np.ones_like(found_R), document_R, least_variance=doubt * (1 - doubt) / (len(found_R) + 1)
    )
    return share if share.high is None else replace(share, high=min(1.0, share.high))


def mean_ratio(
    over_R: NDArray[np.float64],
    under_R: NDArray[np.float64],
    document_R: NDArray[np.int64],
    *,
    least_variance: float = 0.0,
) -> Headline:
    """Of draws, the sum of the one over the sum of the other, neither below 0; its variance is linearised and clustered
    by document."""
    total = under_R.sum()
    if not total:
        return Headline(value=None, not_testable="not testable: n = 0 of 1 co-active pairs")
    value = float(over_R.sum() / total)
    _, place_R = np.unique(document_R, return_inverse=True)
    rest_P = np.bincount(place_R, over_R - value * under_R) / total
    documents = len(rest_P)
    if documents < LEAST_DOCUMENTS:
        few = f"not testable: n = {documents} of {LEAST_DOCUMENTS} documents"
        return Headline(value=value, not_testable=f"interval {few}")
    variance = max(documents / (documents - 1) * float((rest_P**2).sum()), least_variance)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, documents - 1)) * math.sqrt(variance)
    return Headline(value=value, low=max(0.0, value - half), high=value + half)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Co-active pairs drawn at random: every two experts on a token are as likely, whatever their lift."""

    token_R: NDArray[np.int64]
    first_R: NDArray[np.int64]
    second_R: NDArray[np.int64]

    def chosen(self, of: NDArray[np.bool_]) -> "Draws":
        return Draws(token_R=self.token_R[of], first_R=self.first_R[of], second_R=self.second_R[of])

    def joined(self, others: "Draws") -> "Draws":
        """These, then the others."""
        return Draws(
            token_R=np.concatenate([self.token_R, others.token_R]),
            first_R=np.concatenate([self.first_R, others.first_R]),
            second_R=np.concatenate([self.second_R, others.second_R]),
        )


def draw(firings: Firings, rng: np.random.Generator, draws: int) -> Draws:
    """None if nothing is co-active."""
    upto_T = np.cumsum(firings.events_T)
    if not draws or not upto_T[-1]:
        none = np.zeros(0, np.int64)
        return Draws(token_R=none, first_R=none, second_R=none)
    token_R = np.searchsorted(upto_T, rng.integers(0, upto_T[-1], draws), side="right")
    twos = [np.sort(rng.choice(row[row >= 0], 2, replace=False)) for row in firings.expert_TK[token_R]]
    first_R, second_R = np.array(twos, np.int64).reshape(-1, 2).T
    return Draws(token_R=token_R, first_R=first_R, second_R=second_R)


def draw_by_mass(firings: Firings, rng: np.random.Generator, draws: int) -> Draws:
    """The same, two experts on a token as likely as the product of what they contribute."""
    mass_TK = np.where(firings.expert_TK >= 0, np.abs(firings.contribution_TK), 0).astype(np.float64)
    partner_TK = mass_TK * (mass_TK.sum(1, keepdims=True) - mass_TK)
    upto_T = np.cumsum(partner_TK.sum(1))
    if not draws or not upto_T[-1]:
        return draw(firings, rng, 0)
    token_R = np.searchsorted(upto_T, rng.random(draws) * upto_T[-1], side="right")
    one_R = _places(partner_TK[token_R], rng)
    rest_RK = mass_TK[token_R]
    rest_RK[np.arange(draws), one_R] = 0
    other_R = _places(rest_RK, rng)
    expert_RK = firings.expert_TK[token_R]
    twos = np.sort(np.take_along_axis(expert_RK, np.stack([one_R, other_R], axis=1), axis=1), axis=1).astype(np.int64)
    return Draws(token_R=token_R, first_R=twos[:, 0], second_R=twos[:, 1])


def _places(weight_RK: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A column of each row, by its weight."""
    upto_RK = np.cumsum(weight_RK, axis=1)
    below_R1 = rng.random((len(weight_RK), 1)) * upto_RK[:, -1:]
    return np.minimum((upto_RK <= below_R1).sum(1), weight_RK.shape[1] - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surveyed:
    """Pairs whose every co-activation is counted, as against those that draws stand for."""

    pairs: Pairs
    is_code_C: NDArray[np.bool_]
    untestable_C: NDArray[np.bool_]


def shares(
    firings: Firings, surveyed: Surveyed, outside: Draws, code_R: NDArray[np.bool_], untestable_R: NDArray[np.bool_]
) -> tuple[Headline, Headline]:
    """Of all co-active pairs on all tokens: those of joint codes, and those that could not be tested.

    Surveyed pairs are counted. What the others hold is estimated from the draws that fell outside the surveyed.
    """
    events_P = np.bincount(firings.document_T, firings.events_T, minlength=firings.documents).astype(np.float64)
    if not events_P.sum():
        none = Headline(value=None, not_testable="not testable: n = 0 of 1 co-active pairs")
        return none, none
    codes_P, untestable_P, surveyed_P = (np.zeros(firings.documents) for _ in range(3))
    for place in range(len(surveyed.pairs)):
        both = firings.both(int(surveyed.pairs.first_C[place]), int(surveyed.pairs.second_C[place]))
        count_P = np.bincount(firings.document_T[both], minlength=firings.documents)
        surveyed_P += count_P
        codes_P += count_P * surveyed.is_code_C[place]
        untestable_P += count_P * surveyed.untestable_C[place]
    document_R = firings.document_T[outside.token_R]
    return (
        _share(events_P, surveyed_P, codes_P, document_R, code_R),
        _share(events_P, surveyed_P, untestable_P, document_R, untestable_R),
    )


def drawn_share(firings: Firings, draws: Draws, found_R: NDArray[np.bool_]) -> Headline:
    """Of what these draws stand for, the share that was found, its interval clustered by document."""
    if not len(found_R):
        return Headline(value=None, not_testable="not testable: n = 0 of 1 drawn pairs")
    none_P, all_P = np.zeros(firings.documents), np.ones(firings.documents)
    return _share(all_P, none_P, none_P, firings.document_T[draws.token_R], found_R)


def _share(
    events_P: NDArray[np.float64],
    surveyed_P: NDArray[np.float64],
    found_P: NDArray[np.float64],
    document_R: NDArray[np.int64],
    found_R: NDArray[np.bool_],
) -> Headline:
    """A ratio of sums over documents, its variance linearised and clustered by document."""
    total, rest = events_P.sum(), (events_P - surveyed_P).sum()
    draws = len(found_R)
    rate = found_R.mean() if draws else 0.0
    value = float((found_P.sum() + rest * rate) / total)
    documents = len(events_P)
    if documents < LEAST_DOCUMENTS:
        few = f"not testable: n = {documents} of {LEAST_DOCUMENTS} documents"
        return Headline(value=value, not_testable=f"interval {few}")
    counted_P = (found_P + rate * (events_P - surveyed_P) - value * events_P) / total
    variance = documents / (documents - 1) * float((counted_P**2).sum())
    if draws:
        drawn_P = np.bincount(document_R, found_R - rate, minlength=documents) * rest / total / draws
        # Draws that found nothing, or all, still leave half of one in doubt.
        doubt = (found_R.sum() + 0.5) / (draws + 1)
        least = (rest / total) ** 2 * doubt * (1 - doubt) / (draws + 1)
        variance += max(documents / (documents - 1) * float((drawn_P**2).sum()), least)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, documents - 1)) * math.sqrt(variance)
    return Headline(value=value, low=max(0.0, value - half), high=min(1.0, value + half))
