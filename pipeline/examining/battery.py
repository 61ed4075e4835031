"""All tests on a record, in order: bookkeeping, co-activation, joint codes, classes, headlines."""

# C pairs, P documents

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.examining.bookkeeping import Bookkeeping, bookkeeping
from pipeline.examining.chance import LEAST_COUNT, Screen, by_frequency_alone, lifts, moments, screen
from pipeline.examining.classes import FUSED_SHARE, Evidence, class_of
from pipeline.examining.communities import Communities, Triple, communities, triples
from pipeline.examining.counting import Pairs, count_pairs
from pipeline.examining.firings import Firings, firings_of
from pipeline.examining.geometry import GroupGeometry, PairGeometry, Rows, geometry, group_geometry, rows_of_record
from pipeline.examining.headlines import Draws, Headline, Surveyed, draw, draw_by_mass, drawn_share, shares
from pipeline.examining.joint_code import LEAST_BITS, LEAST_TOKENS, JointCode, JointCodes
from pipeline.examining.partial import STABLE, Partial, partial_links
from pipeline.examining.record import Record
from pipeline.examining.siblings import RELATIONS, Relatives, relations

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
    partial: float | None
    """Share of halves of the text in which the pair is linked while all others are known; None if not asked."""
    sibling: str
    """What the two share of the key grid: row, column, cell or neither; neither where the grid is not known."""
    geometry: PairGeometry
    drawn: int
    """How often the pair came among the random co-active ones, which no lift chose."""
    evidence: Evidence
    """What its class follows from."""
    kind: str

    def knowing(self, hidden: bool | None, curvature: bool | None = None) -> "Pair":
        """The same, classed anew by what T2 says of it."""
        evidence = replace(self.evidence, hidden=hidden, curvature=bool(curvature))
        return replace(self, evidence=evidence, kind=class_of(evidence))

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
            "partial": self.partial,
            "sibling": self.sibling,
            **self.geometry.row(),
            "drawn": self.drawn,
            "class": self.kind,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondScreen:
    """How partial correlation sees the significant pairs."""

    pairs: int
    """Of them, those that it was asked about."""
    stable: int
    """Linked in STABLE of the halves of the text or more: the pairs on which the screens agree."""
    agreement: float | None
    """stable / pairs."""
    null_links: int
    null_stable: int
    """The same of experts that were moved along the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examination:
    """What the tests say of a record."""

    bookkeeping: Bookkeeping
    firings: Firings
    significant: Screen
    """All pairs that are co-active beyond chance, by the experts' numbers in `firings`."""
    pairs_counted: int
    """Pairs co-active on LEAST_COUNT tokens or more."""
    pairs_significant: int
    pairs_by_frequency: int
    """Those that would be significant if chance knew how often each expert fires and nothing else."""
    pairs: list[Pair]
    """Those significant ones that were tested, and the random ones; the strongest joint codes first."""
    random_pairs: int
    """Draws of co-active pairs without regard to lift."""
    second_screen: SecondScreen
    geometry: Mapping[str, GroupGeometry]
    """T3 of the significant pairs that were tested: of all, and of each class."""
    communities: Mapping[str, Communities]
    """T5 of the significant pairs that were tested, and of those that are joint codes."""
    triples: list[Triple]
    siblings: list[Relatives]
    """The same counts by what pairs share of the key grid."""
    jcs: Headline
    """Of all co-active pairs of experts on a token, those that are of a joint code."""
    not_testable_share: Headline
    """Of the same, those of pairs that could not be tested."""
    jcs_by_mass: Headline
    """The same as JCS, each pair on a token counted by the product of what the two contribute."""
    blind_spot: Headline
    """Of pairs drawn by that mass that are not co-active beyond chance, those that are joint codes."""
    jcs_of: Mapping[str, Headline]
    """JCS with other labels, from the random draws alone."""


def examine(
    record: Record,
    *,
    seed: int = 0,
    random_pairs: int = RANDOM_PAIRS,
    most_pairs: int = MOST_PAIRS,
    mass_pairs: int = 0,
    relabelled: Mapping[str, Record] | None = None,
    rows: Rows | None = None,
) -> Examination:
    """Every test that a record alone allows; `rows` are the experts' vectors, where the record has none of its own.

    Beside the random pairs, `mass_pairs` are drawn by the product of what the two contribute. `relabelled` are the same
    firings with labels of other families.
    """
    rng = np.random.default_rng(seed)
    firings = firings_of(record)
    screened = screen(firings, count_pairs(firings, LEAST_COUNT))
    significant = screened.chosen(np.flatnonzero(screened.significant_C))
    often = np.sort(np.argsort(-significant.pairs.count_C, kind="stable")[:most_pairs])
    surveyed = significant.chosen(often)
    draws, massed = draw(firings, rng, random_pairs), draw_by_mass(firings, rng, mass_pairs)
    place_R, others = _beside(firings, surveyed.pairs, draws.joined(massed))
    pairs = surveyed.pairs.joined(others)
    codes = JointCodes(firings, rng)
    results = [codes.test(int(one), int(other)) for one, other in zip(pairs.first_C, pairs.second_C, strict=True)]
    is_code_C = np.array([result.bits >= LEAST_BITS for result in results], np.bool_)
    untestable_C = np.array([result.too_few is not None for result in results], np.bool_)
    drawn_C = np.bincount(place_R, minlength=len(pairs))
    significant_C = np.isin(_keys(pairs, firings), _keys(significant.pairs, firings))
    place_R, place_M = place_R[: len(draws.token_R)], place_R[len(draws.token_R) :]
    outside = draws.chosen(place_R >= len(often))
    jcs, not_testable = shares(
        firings,
        Surveyed(pairs=surveyed.pairs, is_code_C=is_code_C[: len(often)], untestable_C=untestable_C[: len(often)]),
        outside,
        is_code_C[place_R[place_R >= len(often)]],
        untestable_C[place_R[place_R >= len(often)]],
    )
    partial = partial_links(firings, screened, surveyed.pairs, pairs, np.random.default_rng([seed, 1]))
    tables = _Tables(
        firings=firings,
        pairs=pairs,
        lift_C=np.concatenate([surveyed.lift_C, lifts(others, moments(firings, others)[0])]),
        stability_C=partial.stability_C,
        significant_C=significant_C,
        geometries=geometry(firings, pairs, rows or rows_of_record(record), np.random.default_rng([seed, 2])),
        relation_C=relations(firings, pairs.first_C, pairs.second_C),
        drawn_C=drawn_C,
    )
    listed = [tables.pair(place, result) for place, result in enumerate(results)]
    listed.sort(key=lambda pair: (not pair.significant, -(pair.joint_code_bits or 0), -pair.count, pair.i, pair.j))
    return Examination(
        bookkeeping=bookkeeping(record),
        firings=firings,
        significant=significant,
        pairs_counted=len(screened.pairs),
        pairs_significant=len(significant.pairs),
        pairs_by_frequency=int(by_frequency_alone(firings, screened.pairs).sum()),
        pairs=listed,
        random_pairs=len(place_R),
        second_screen=_second_screen(partial, len(often)),
        geometry=_by_class(listed),
        communities={
            "significant": communities(firings, surveyed.pairs, seed),
            "joint_code": communities(firings, surveyed.pairs.chosen(is_code_C[: len(often)]), seed),
        },
        triples=triples(firings, surveyed.pairs, np.random.default_rng([seed, 3])),
        siblings=_by_relation(firings, screened, surveyed.pairs, is_code_C[: len(often)]),
        jcs=jcs,
        not_testable_share=not_testable,
        jcs_by_mass=drawn_share(firings, massed, is_code_C[place_M]),
        blind_spot=drawn_share(
            firings, massed.chosen(~significant_C[place_M]), is_code_C[place_M[~significant_C[place_M]]]
        ),
        jcs_of={
            name: _of_draws(firings, draws, JointCodes(firings_of(other), rng))
            for name, other in (relabelled or {}).items()
        },
    )


def _of_draws(firings: Firings, draws: Draws, codes: JointCodes) -> Headline:
    """JCS from the draws alone, each pair tested once."""
    width = len(firings.name_F)
    key_C, place_R = np.unique(draws.first_R * width + draws.second_R, return_inverse=True)
    is_code_C = np.array([codes.test(key // width, key % width).bits >= LEAST_BITS for key in key_C.tolist()], np.bool_)
    return drawn_share(firings, draws, is_code_C[place_R])


def _second_screen(partial: Partial, significant: int) -> SecondScreen:
    asked_C = partial.stability_C[:significant]
    asked_C = asked_C[~np.isnan(asked_C)]
    stable = int((asked_C >= STABLE).sum())
    return SecondScreen(
        pairs=len(asked_C),
        stable=stable,
        agreement=stable / len(asked_C) if len(asked_C) else None,
        null_links=partial.null_links,
        null_stable=partial.null_stable,
    )


def _by_class(pairs: list[Pair]) -> dict[str, GroupGeometry]:
    significant = [pair for pair in pairs if pair.significant]
    kinds = sorted({pair.kind for pair in significant})
    return {
        "significant": group_geometry([pair.geometry for pair in significant]),
        **{kind: group_geometry([pair.geometry for pair in significant if pair.kind == kind]) for kind in kinds},
    }


def _by_relation(firings: Firings, screened: Screen, tested: Pairs, is_code_C: NDArray[np.bool_]) -> list[Relatives]:
    every_C = relations(firings, screened.pairs.first_C, screened.pairs.second_C)
    tested_C = relations(firings, tested.first_C, tested.second_C)
    counts = [
        np.bincount(relation_C, minlength=len(RELATIONS)).tolist()
        for relation_C in (every_C, every_C[screened.significant_C], tested_C, tested_C[is_code_C])
    ]
    names = ("pairs_counted", "pairs_significant", "pairs_tested", "joint_codes")
    return [
        Relatives(relation=relation, **dict(zip(names, row, strict=True)))
        for relation, row in zip(RELATIONS, zip(*counts, strict=True), strict=True)
    ]


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
    stability_C: NDArray[np.floating]
    significant_C: NDArray[np.bool_]
    geometries: list[PairGeometry]
    relation_C: NDArray[np.int64]
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
            parallel=self.geometries[place].parallel,
            opposed=self.geometries[place].opposed,
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
            partial=None if np.isnan(self.stability_C[place]) else float(self.stability_C[place]),
            sibling=RELATIONS[int(self.relation_C[place])],
            geometry=self.geometries[place],
            drawn=int(self.drawn_C[place]),
            evidence=evidence,
            kind=class_of(evidence),
        )
