"""All tests on a record, in order: bookkeeping, co-activation, joint codes, classes, headlines."""

# C pairs, P documents

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.examining.bookkeeping import Bookkeeping, bookkeeping
from pipeline.examining.chance import LEAST_COUNT, moments, screen
from pipeline.examining.classes import FUSED_SHARE, Evidence, class_of
from pipeline.examining.counting import Pairs, count_pairs
from pipeline.examining.firings import Firings, firings_of
from pipeline.examining.headlines import Draws, Headline, Surveyed, draw, shares
from pipeline.examining.joint_code import LEAST_BITS, LEAST_TOKENS, JointCode, JointCodes
from pipeline.examining.record import Record

RANDOM_PAIRS = 2_000
MOST_PAIRS = 10_000
"""Significant pairs that are tested for a joint code; of more, those that are co-active most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two experts by their indices in the pool, i below j, and what the tests say of them."""

    i: int
    j: int
    count: int
    """Tokens on which both fired."""
    lift: float
    """Of that over what chance gives in the strata."""
    significant: bool
    joint_code_bits: float | None
    """J beyond five standard deviations of chance; None is `not_testable`."""
    joint_code_estimate_bits: float | None
    """J beyond the mean of chance."""
    joint_code_deviations: float | None
    not_testable: str | None
    sibling: str | None
    """row, column or cell, where the key grid is known and the two share it."""
    drawn: int
    """How often the pair came among the random co-active ones, which no lift chose."""
    evidence: Evidence
    """What its class follows from."""

    @property
    def kind(self) -> str:
        """Its class."""
        return class_of(self.evidence)

    def row(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "i": self.i,
            "j": self.j,
            "count": self.count,
            "lift": self.lift,
            "significant": self.significant,
            "joint_code_bits": self.joint_code_bits,
            "joint_code_estimate_bits": self.joint_code_estimate_bits,
            "joint_code_deviations": self.joint_code_deviations,
            "not_testable": self.not_testable,
            "sibling": self.sibling,
            "drawn": self.drawn,
            "class": self.kind,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What the tests say of a record."""

    bookkeeping: Bookkeeping
    pairs_counted: int
    """Pairs co-active on LEAST_COUNT tokens or more."""
    pairs_significant: int
    pairs: list[Pair]
    """Those significant ones that were tested, and the random ones; the strongest joint codes first."""
    random_pairs: int
    """Draws of co-active pairs without regard to lift."""
    jcs: Headline
    """Of all co-active pairs of experts on a token, those that are of a joint code."""
    not_testable_share: Headline
    """Of the same, those of pairs that could not be tested."""


def examine(
    record: Record, *, seed: int = 0, random_pairs: int = RANDOM_PAIRS, most_pairs: int = MOST_PAIRS
) -> Examination:
    """Every test that a record alone allows."""
    rng = np.random.default_rng(seed)
    firings = firings_of(record)
    screened = screen(firings, count_pairs(firings, LEAST_COUNT))
    significant = screened.chosen(np.flatnonzero(screened.significant_C))
    often = np.sort(np.argsort(-significant.pairs.count_C, kind="stable")[:most_pairs])
    surveyed = significant.chosen(often)
    draws = draw(firings, rng, random_pairs)
    place_R, others = _beside(firings, surveyed.pairs, draws)
    pairs = surveyed.pairs.joined(others)
    codes = JointCodes(firings, rng)
    results = [codes.test(int(one), int(other)) for one, other in zip(pairs.first_C, pairs.second_C, strict=True)]
    is_code_C = np.array([result.bits >= LEAST_BITS for result in results], np.bool_)
    untestable_C = np.array([result.too_few is not None for result in results], np.bool_)
    outside = draws.chosen(place_R >= len(often))
    jcs, not_testable = shares(
        firings,
        Surveyed(pairs=surveyed.pairs, is_code_C=is_code_C[: len(often)], untestable_C=untestable_C[: len(often)]),
        outside,
        is_code_C[place_R[place_R >= len(often)]],
        untestable_C[place_R[place_R >= len(often)]],
    )
    tables = _Tables(
        firings=firings,
        pairs=pairs,
        lift_C=np.concatenate([surveyed.lift_C, others.count_C / moments(firings, others)[0]]),
        significant_C=np.isin(_keys(pairs, firings), _keys(significant.pairs, firings)),
        drawn_C=np.bincount(place_R, minlength=len(pairs)),
    )
    listed = [tables.pair(place, result) for place, result in enumerate(results)]
    listed.sort(key=lambda pair: (not pair.significant, -(pair.joint_code_bits or 0), -pair.count, pair.i, pair.j))
    return Examination(
        bookkeeping=bookkeeping(record),
        pairs_counted=len(screened.pairs),
        pairs_significant=len(significant.pairs),
        pairs=listed,
        random_pairs=len(place_R),
        jcs=jcs,
        not_testable_share=not_testable,
    )


def _keys(pairs: Pairs, firings: Firings) -> NDArray[np.int64]:
    return pairs.first_C * len(firings.name_F) + pairs.second_C


def _beside(firings: Firings, surveyed: Pairs, draws: Draws) -> tuple[NDArray[np.int64], Pairs]:
    """Where each drawn pair stands in the surveyed pairs followed by the others, and those others."""
    width = len(firings.name_F)
    drawn_R, known = draws.first_R * width + draws.second_R, _keys(surveyed, firings)
    other = np.setdiff1d(drawn_R, known)
    first, second = other // width, other % width
    count = [len(firings.both(int(one), int(two))) for one, two in zip(first, second, strict=True)]
    every = np.concatenate([known, other])
    order = np.argsort(every)
    place_R = order[np.searchsorted(every, drawn_R, sorter=order)] if len(every) else drawn_R
    return place_R, Pairs(first_C=first, second_C=second, count_C=np.array(count, np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tables:
    """What is known of pairs before labels are looked at."""

    firings: Firings
    pairs: Pairs
    lift_C: NDArray[np.float64]
    significant_C: NDArray[np.bool_]
    drawn_C: NDArray[np.int64]

    def pair(self, place: int, result: JointCode) -> Pair:
        one, other = int(self.pairs.first_C[place]), int(self.pairs.second_C[place])
        count = int(self.pairs.count_C[place])
        significant, tested = bool(self.significant_C[place]), result.too_few is None
        most = count / int(self.firings.fired_F[[one, other]].max())
        evidence = Evidence(
            significant=significant,
            joint_code=result.bits >= LEAST_BITS if tested else None,
            alike=result.alike,
            never_part=result.scarce == "alone" and most >= FUSED_SHARE,
        )
        return Pair(
            i=int(self.firings.name_F[one]),
            j=int(self.firings.name_F[other]),
            count=count,
            lift=float(self.lift_C[place]),
            significant=significant,
            joint_code_bits=result.bits if tested else None,
            joint_code_estimate_bits=result.estimate_bits if tested else None,
            joint_code_deviations=result.deviations if tested else None,
            not_testable=None if tested else f"not testable: n = {result.too_few} of {LEAST_TOKENS}",
            sibling=self._sibling(one, other),
            drawn=int(self.drawn_C[place]),
            evidence=evidence,
        )

    def _sibling(self, one: int, other: int) -> str | None:
        if self.firings.cell_F2 is None:
            return None
        (row, column), (other_row, other_column) = self.firings.cell_F2[[one, other]].tolist()
        if (row, column) == (other_row, other_column):
            return "cell"
        return "row" if row == other_row else "column" if column == other_column else None
