"""Records with planted truth: pairs that are joint codes, compose, or are redundant, among confounded others.

Level A. A document has a topic; topics set how often concepts and background experts come. Of a *code* pair the first
expert says A, the second B, both together C. A *composed* pair's label has the product of the two experts' meanings. A
*redundant* pair says one label, mostly with both. Labels are noisy. Background experts fire by topic alone, so that
those of one topic are co-active far more often than their frequencies say, which is no truth about pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planting:
    """What to plant."""

    seed: int = 0
    experts: int = 4096
    tokens: int = 400_000
    pairs: int = 50
    """Of each of the three kinds."""
    solo: int = 400
    """Concepts with one expert and one label each."""
    background: int = 2000
    active: int = 6
    """Background experts drawn for a token, repetitions merged."""
    topics: int = 8
    document: int = 256
    noise: float = 0.1
    """Share of tokens whose label is any."""
    both: float = 0.9
    """Share of a redundant pair's tokens on which both fire."""
    burst: float = 0.0
    """Share of tokens that repeat the background experts of the token before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planted:
    """A record and its truth."""

    tensors: dict[str, Tensor]
    code: frozenset[Pair]
    composed: frozenset[Pair]
    redundant: frozenset[Pair]

    @property
    def all(self) -> frozenset[Pair]:
        return self.code | self.composed | self.redundant


def plant(of: Planting) -> Planted:
    """A record of the documented layout."""
    rng = np.random.default_rng(of.seed)
    order = rng.permutation(of.experts)
    pairs, rest = np.split(order, [6 * of.pairs])
    code, composed, redundant = np.sort(pairs.reshape(3, of.pairs, 2), axis=2)
    solo, background = rest[: of.solo], rest[of.solo : of.solo + of.background]
    concepts: list[tuple[tuple[int, ...], np.ndarray, np.ndarray, float]] = []
    labels = 0
    for first, second in code:
        for place, fires in enumerate([(first,), (second,), (first, second)]):
            concepts.append((fires, np.array([labels + place]), np.ones(1), 1.0))
        labels += 3
    for first, second in composed:
        said = np.arange(labels, labels + 4)
        one, other = rng.normal(0, 1.5, (2, 4))
        for fires, logits in (((first,), one), ((second,), other), ((first, second), one + other), ((), 0 * one)):
            concepts.append((fires, said, np.exp(logits) / np.exp(logits).sum(), 1.0))
        labels += 4
    for first, second in redundant:
        said, alone = np.array([labels]), 3 * (1 - of.both) / 2
        concepts += [((first, second), said, np.ones(1), 3 * of.both)]
        concepts += [((one,), said, np.ones(1), alone) for one in (first, second)]
        labels += 1
    concepts += [((one,), np.array([labels + place]), np.ones(1), 1.0) for place, one in enumerate(solo)]
    labels += of.solo
    topic_T = np.repeat(rng.integers(0, of.topics, of.tokens // of.document + 1), of.document)[: of.tokens]
    weights = np.array([weight for *_, weight in concepts]) * rng.lognormal(0, 0.5, len(concepts))
    concept_T = _drawn(rng, weights * rng.gamma(1.0, 1.0, (of.topics, len(concepts))), topic_T, 1)[:, 0]
    frequencies = np.arange(1, of.background + 1) ** -0.9
    other_TK = background[
        _drawn(rng, frequencies * rng.gamma(0.7, 1.0, (of.topics, of.background)), topic_T, of.active)
    ]
    for token in np.flatnonzero(rng.random(of.tokens) < of.burst):
        if token % of.document:
            other_TK[token] = other_TK[token - 1]
    label_T, own_T2 = np.empty(of.tokens, np.int64), np.full((of.tokens, 2), -1)
    for number, (fires, said, shares, _) in enumerate(concepts):
        tokens = np.flatnonzero(concept_T == number)
        label_T[tokens] = rng.choice(said, len(tokens), p=shares)
        own_T2[tokens, : len(fires)] = fires
    any_T = rng.random(of.tokens) < of.noise
    label_T[any_T] = rng.integers(0, labels, any_T.sum())
    expert_TK = np.concatenate([own_T2, other_TK], axis=1)
    tensors = {
        "expert": torch.from_numpy(expert_TK.astype(np.int32)),
        "contribution": torch.from_numpy(rng.gamma(2.0, 0.5, expert_TK.shape).astype(np.float16)),
        "token": torch.from_numpy(label_T % 997),
        "label": torch.from_numpy(label_T),
        "document": torch.arange(of.tokens) // of.document,
        "stratum": torch.from_numpy(topic_T.astype(np.int64)),
        "experts": torch.tensor(of.experts),
    }
    truth = [frozenset((int(first), int(second)) for first, second in kind) for kind in (code, composed, redundant)]
    return Planted(tensors=tensors, code=truth[0], composed=truth[1], redundant=truth[2])


def _drawn(rng: np.random.Generator, weight: np.ndarray, topic_T: np.ndarray, draws: int) -> np.ndarray:
    """Numbers drawn for each token by the weights of its topic."""
    drawn = np.empty((len(topic_T), draws), np.int64)
    for topic, weights in enumerate(weight):
        tokens = np.flatnonzero(topic_T == topic)
        drawn[tokens] = rng.choice(len(weights), (len(tokens), draws), p=weights / weights.sum())
    return drawn
