"""T5: which experts hang together by flagged pairs, and whether three say more than two of them.

Equations, and what they can show: docs/methods/superposition.md.
"""

# C pairs, L labels, D draws, T tokens

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import networkx
import numpy as np
from numpy.typing import NDArray

from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings
from pipeline.examining.joint_code import DEVIATIONS, LEAST_BITS, LEAST_TOKENS

TRIPLES = 100
"""Of three experts whose pairs are all beyond chance, those that are co-active most."""
LISTED, COUNTED = 200_000, 2_000
"""Triples that are listed to find them, and of these, by the rarest of their pairs, that are counted."""
DRAWS = 50

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Communities:
    """Of experts joined by pairs, each pair as strongly as its NPMI says."""

    pairs: int
    experts: int
    component_sizes: dict[int, int]
    """How many components have so many experts."""
    community_sizes: dict[int, int]
    """The same of the parts in which modularity is highest, as Louvain's method finds them."""
    modularity: float | None
    """Of these parts: 0 if pairs join experts across them as often as within."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Triple:
    """Three experts whose pairs are all beyond chance, and what is lost without one of them."""

    experts: tuple[int, int, int]
    count: int
    """Tokens on which all three fire."""
    dropping_bits: tuple[float | None, float | None, float | None]
    """KL of the labels of all three from those of the other two without it, beyond chance and five deviations; None
    where the other two are without it on too few tokens."""

    @property
    def needed(self) -> int:
        """Of the three, those without whom the labels are others."""
        return sum(bits is not None and bits >= LEAST_BITS for bits in self.dropping_bits)

    def row(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "experts": self.experts,
            "count": self.count,
            "dropping_bits": self.dropping_bits,
            "needed": self.needed,
        }


def npmi(firings: Firings, pairs: Pairs) -> Floats:
    """Of each pair: log lift over -log of the share of tokens of both, from -1 to 1."""
    tokens = firings.tokens
    chance_C = firings.fired_F[pairs.first_C] / tokens * firings.fired_F[pairs.second_C]
    share_C = pairs.count_C / tokens
    return np.log(pairs.count_C / chance_C) / np.maximum(-np.log(share_C), 1e-12)


def communities(firings: Firings, pairs: Pairs, seed: int) -> Communities:
    """Pairs that are co-active less than their frequencies say, as in few strata, join nobody to a community."""
    weight_C = npmi(firings, pairs)
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        zip(pairs.first_C.tolist(), pairs.second_C.tolist(), np.maximum(weight_C, 0).tolist(), strict=True)
    )
    parts = networkx.community.louvain_communities(graph, seed=seed) if len(pairs) else []
    heavy = bool((weight_C > 0).any())
    return Communities(
        pairs=len(pairs),
        experts=graph.number_of_nodes(),
        component_sizes=_sizes([len(of) for of in networkx.connected_components(graph)]),
        community_sizes=_sizes([len(of) for of in parts]),
        modularity=float(networkx.community.modularity(graph, parts)) if heavy else None,
    )


def _sizes(sizes: Sequence[int]) -> dict[int, int]:
    return dict(sorted(Counter(sizes).items()))


def triples(firings: Firings, pairs: Pairs, rng: np.random.Generator) -> list[Triple]:
    """Of these pairs' experts those that are all three co-active on LEAST_TOKENS or more, the most frequent."""
    graph = networkx.Graph()
    graph.add_weighted_edges_from(
        zip(pairs.first_C.tolist(), pairs.second_C.tolist(), pairs.count_C.tolist(), strict=True)
    )
    upto_three = itertools.takewhile(lambda of: len(of) <= 3, networkx.enumerate_all_cliques(graph))
    closed = itertools.islice((sorted(of) for of in upto_three if len(of) == 3), LISTED)

    def most(of: list[int]) -> int:
        return min(graph.edges[two]["weight"] for two in itertools.combinations(of, 2))

    likely = heapq.nlargest(COUNTED, ((most(of), of) for of in closed))
    counted = sorted(((len(_of_all(firings, of)), of) for _, of in likely), reverse=True)
    return [_triple(firings, of, rng) for count, of in counted[:TRIPLES] if count >= LEAST_TOKENS]


def _of_all(firings: Firings, experts: Sequence[int]) -> Ints:
    first, second, third = experts
    return np.intersect1d(firings.both(first, second), firings.tokens_of(third), assume_unique=True)


def _triple(firings: Firings, experts: list[int], rng: np.random.Generator) -> Triple:
    every_T = _of_all(firings, experts)
    bits = []
    for dropped in experts:
        one, other = (expert for expert in experts if expert != dropped)
        without_T = np.setdiff1d(firings.both(one, other), every_T, assume_unique=True)
        bits.append(_told(firings, every_T, without_T, rng))
    first, second, third = (int(name) for name in firings.name_F[experts])
    return Triple(experts=(first, second, third), count=len(every_T), dropping_bits=(bits[0], bits[1], bits[2]))


def _told(firings: Firings, every_T: Ints, without_T: Ints, rng: np.random.Generator) -> float | None:
    """KL of the labels of the first from those of the second, less what two draws of their sum give."""
    counts = [
        np.bincount(label_T[label_T >= 0], minlength=firings.labels).astype(np.float64)
        for label_T in (firings.label_T[every_T], firings.label_T[without_T])
    ]
    sizes = [int(count.sum()) for count in counts]
    if min(sizes) < LEAST_TOKENS:
        return None
    pooled = counts[0] + counts[1]
    shared = pooled > 0
    share = pooled[shared] / pooled.sum()
    bits = _divergence(counts[0][None, shared], counts[1][None, shared], share)[0]
    drawn, others = (rng.multinomial(size, share, DRAWS) for size in sizes)
    null_D = _divergence(drawn, others, share)
    return max(0.0, float(bits - null_D.mean() - DEVIATIONS * null_D.std(ddof=1)))


def _divergence(count_DL: NDArray[np.number], other_DL: NDArray[np.number], share_L: Floats) -> Floats:
    """(D) bits; the other has one token more, of the labels of both."""
    of_DL = count_DL / count_DL.sum(1, keepdims=True)
    from_DL = (other_DL + share_L) / (other_DL.sum(1, keepdims=True) + 1)
    ratio_DL = np.divide(of_DL, from_DL, out=np.ones_like(from_DL), where=of_DL > 0)
    return (of_DL * np.log2(ratio_DL)).sum(1)
