"""T3: how far pairs part in use, and how their vectors lie, beside pairs of experts that fire as often.

Equations, and what they can show: docs/methods/superposition.md.
"""

# E experts of the pool, F experts that fired, R rows that are asked for, M neurons of an expert, D model width,
# C pairs, X matched pairs of a pair, T tokens

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.examining.counting import Pairs
from pipeline.examining.firings import Firings
from pipeline.examining.record import Record
from pipeline.models.contract import ExpertLayer, ExpertSpec
from pipeline.models.registry import kind_of

MATCHED = 20
"""Random pairs beside each."""
DECILES = 10
PARALLEL = 0.7
"""The cosine of what two experts write, above which they may be one."""
PAIRS_AT_ONCE = 256

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]
Rows = Callable[[Ints], tuple[Floats | None, Floats]]
"""(R, M, D) what experts of the pool read, if they read vectors, and what they write."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lie:
    """How the vectors of a pair lie."""

    cosine: float
    """Between the vectors of two neurons; between experts of more, how much of the same they span, 0 to 1."""
    matched: float | None
    """The mean of that over random pairs of experts that fire as often."""
    above: float | None
    """The share of those pairs that this one is above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairGeometry:
    """T3 of one pair, i and j."""

    p_j_given_i: float
    p_i_given_j: float
    ratio_variance: float | None
    """Of i's share in what both contribute, over their tokens; 0 if the two are one expert in two parts. None where
    they contribute nothing."""
    input: Lie | None
    output: Lie | None
    interference: float | None
    """E[g_i g_j v_i . v_j] over E |g_i v_i + g_j v_j|^2 on tokens of both, if both contribute with one sign."""

    @property
    def parallel(self) -> bool:
        """They write nearly the same."""
        return self.output is not None and self.output.cosine > PARALLEL

    @property
    def opposed(self) -> bool:
        """They write against each other, more than all pairs that fire as often."""
        return self.output is not None and self.output.cosine < 0 and self.output.above == 0

    def row(self) -> dict[str, object]:
        """As --json prints it."""
        lies = {"input": self.input, "output": self.output}
        return {
            "p_j_given_i": self.p_j_given_i,
            "p_i_given_j": self.p_i_given_j,
            "ratio_variance": self.ratio_variance,
            "interference": self.interference,
            **{f"cos_{name}": None if lie is None else lie.cosine for name, lie in lies.items()},
            **{f"cos_{name}_matched": None if lie is None else lie.matched for name, lie in lies.items()},
            **{f"cos_{name}_above": None if lie is None else lie.above for name, lie in lies.items()},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupGeometry:
    """T3 over the significant pairs of one class, or all of them: means over pairs."""

    pairs: int
    ratio_variance: float | None
    cos_input: float | None
    cos_input_matched: float | None
    cos_output: float | None
    cos_output_matched: float | None
    interference: float | None


def group_geometry(of: Sequence[PairGeometry]) -> GroupGeometry:
    """Means where there is anything to take one of."""
    inputs, outputs = ([lie for pair in of if (lie := getattr(pair, name))] for name in ("input", "output"))
    return GroupGeometry(
        pairs=len(of),
        ratio_variance=_mean([pair.ratio_variance for pair in of]),
        cos_input=_mean([lie.cosine for lie in inputs]),
        cos_input_matched=_mean([lie.matched for lie in inputs]),
        cos_output=_mean([lie.cosine for lie in outputs]),
        cos_output_matched=_mean([lie.matched for lie in outputs]),
        interference=_mean([pair.interference for pair in of]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def rows_of_record(record: Record) -> Rows | None:
    """The vectors that a record brings along; None where it has none of what experts write."""
    input_ED, output_ED = record.input_ED, record.output_ED
    if output_ED is None:
        return None
    return lambda expert_R: (None if input_ED is None else input_ED[expert_R, None], output_ED[expert_R, None])


def rows_of_layer(spec: ExpertSpec, experts: ExpertLayer) -> Rows:
    """The vectors of a layer's experts."""
    vectors, device = kind_of(spec).vectors, next(experts.parameters(), next(experts.buffers(), torch.empty(0))).device

    @torch.no_grad()
    def rows(expert_R: Ints) -> tuple[Floats | None, Floats]:
        found = vectors(experts, torch.from_numpy(expert_R.astype(np.int64)).to(device))
        read, written = (None if of is None else of.float().cpu().numpy() for of in (found.input_RMD, found.output_RMD))
        assert written is not None
        return read, written

    return rows


def geometry(firings: Firings, pairs: Pairs, rows: Rows | None, rng: np.random.Generator) -> list[PairGeometry]:
    """Of each pair."""
    lies = (
        {"input": [None] * len(pairs), "output": [None] * len(pairs)}
        if rows is None
        else _lies(firings, pairs, rows, rng)
    )
    single = rows is not None and rows(firings.name_F[:1])[1].shape[1] == 1
    found = []
    for place, (one, other) in enumerate(zip(pairs.first_C.tolist(), pairs.second_C.tolist(), strict=True)):
        both = firings.both(one, other)
        g_T, h_T = (_contributions(firings, expert, both) for expert in (one, other))
        output = lies["output"][place]
        found.append(
            PairGeometry(
                p_j_given_i=len(both) / int(firings.fired_F[one]),
                p_i_given_j=len(both) / int(firings.fired_F[other]),
                ratio_variance=_ratio_variance(g_T, h_T),
                input=lies["input"][place],
                output=output,
                interference=_interference(g_T, h_T, output.cosine) if single and output is not None else None,
            )
        )
    return found


def _contributions(firings: Firings, expert: int, tokens: Ints) -> Floats:
    own_TK = firings.expert_TK[tokens] == expert
    return np.where(own_TK, firings.contribution_TK[tokens], 0).sum(1, dtype=np.float64)


def _ratio_variance(g_T: Floats, h_T: Floats) -> float | None:
    sum_T = np.abs(g_T) + np.abs(h_T)
    ratio_T = np.abs(g_T)[sum_T > 0] / sum_T[sum_T > 0]
    return float(ratio_T.var()) if len(ratio_T) else None


def _interference(g_T: Floats, h_T: Floats, cosine: float) -> float | None:
    """Contributions are lengths, so vectors of length 1 stand for v."""
    shared = float((g_T * h_T).sum()) * cosine
    whole = float((g_T**2 + h_T**2).sum()) + 2 * shared
    return shared / whole if whole > 0 else None


def _lies(firings: Firings, pairs: Pairs, rows: Rows, rng: np.random.Generator) -> Mapping[str, list[Lie | None]]:
    order = np.argsort(firings.fired_F, kind="stable")
    rank_F = np.empty(len(order), np.int64)
    rank_F[order] = np.arange(len(order))
    found: dict[str, list[Lie | None]] = {"input": [], "output": []}
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs.chosen(slice(start, start + PAIRS_AT_ONCE))
        ends = [
            np.concatenate([of_C[:, None], _alike(rank_F[of_C], order, rng)], axis=1)
            for of_C in (part.first_C, part.second_C)
        ]
        one, other = (rows(firings.name_F[of_CX.ravel()]) for of_CX in ends)
        # An expert beside itself is no pair, and the pair itself is no other.
        own_CX = [(of_CX == ends[0][:, :1]) | (of_CX == ends[1][:, :1]) for of_CX in ends]
        same_CX = (ends[0] == ends[1]) | (own_CX[0] & own_CX[1])
        for name, one_RMD, other_RMD in zip(("input", "output"), one, other, strict=True):
            if one_RMD is None or other_RMD is None:
                found[name] += [None] * len(part)
                continue
            cosine_CX = _cosine(one_RMD, other_RMD).reshape(ends[0].shape)
            found[name] += [
                _lie(cosine_X[0], cosine_X[1:][~same_X[1:]])
                for cosine_X, same_X in zip(cosine_CX, same_CX, strict=True)
            ]
    return found


def _alike(rank_C: Ints, order: Ints, rng: np.random.Generator) -> Ints:
    """(C, X) experts of the same decile by how often they fire."""
    width = max(1, -(-len(order) // DECILES))
    low_C = rank_C // width * width
    high_C = np.minimum(low_C + width, len(order))
    return order[rng.integers(low_C[:, None], high_C[:, None], (len(rank_C), MATCHED))]


def _lie(cosine: float, matched_X: Floats) -> Lie:
    if not len(matched_X):
        return Lie(cosine=float(cosine), matched=None, above=None)
    return Lie(cosine=float(cosine), matched=float(matched_X.mean()), above=float((matched_X < cosine).mean()))


def _cosine(one_RMD: Floats, other_RMD: Floats) -> Floats:
    """(R): of one neuron each the cosine. Of more, |A B'| / sqrt(|A A'| |B B'|) in Frobenius norms, which does not
    depend on their order and has no sign."""
    cross, own, others = (
        np.einsum("rmd,rnd->rmn", *two) for two in ((one_RMD, other_RMD), (one_RMD, one_RMD), (other_RMD, other_RMD))
    )
    if cross.shape[1:] == (1, 1):
        return cross[:, 0, 0] / np.sqrt(np.maximum(own[:, 0, 0] * others[:, 0, 0], 1e-30))
    norms = [np.sqrt((of**2).sum((1, 2))) for of in (cross, own, others)]
    return norms[0] / np.sqrt(np.maximum(norms[1] * norms[2], 1e-30))
