"""T2, the second difference: whether what two experts do to the output is the sum of what each does.

    iota = E|D2| / sqrt(E|d_i| E|d_j|)      over tokens on which both fire (logit_effects.py has D2 and d)

An expert is left out by its gate times its output; no gate is normalised again. The null is the same i with other
co-active experts that do as much to the logits as j.
"""

# P co-active pairs on a token, C pairs of experts, X pairs of the null, R random draws

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from kernels.errors import Mistake
from pipeline.examining.ablated_states import FREE, FROZEN, ModelStates, States
from pipeline.examining.firings import firings_of
from pipeline.examining.headlines import Headline, draw, mean_ratio, mean_share
from pipeline.examining.logit_effects import Effects, effects_of, second_difference
from pipeline.examining.partners import LEAST_TOKENS, Placed, partners_of, some_of
from pipeline.examining.record import Record, record_of
from pipeline.models.language_model import LanguageModel
from pipeline.records.exports import layer_tensors
from pipeline.records.record import ActivationRecord

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_PARTNERS = 100
"""Matched ones, for their 99th percentile to be said."""
NULL_QUANTILE = 0.99
LEAST_FAILURE = 0.25
"""Of a pair's tokens those on which the additive logits name another token: from it on its function is hidden."""
CURVATURE_FAILURE, CURVATURE_REST = 0.1, 0.1
"""Failures, and the share of the loss's second difference that is not curvature, below which it is curvature alone."""


class SecondDifferenceConfig(BaseModel):
    """How many ablations stand behind second differences."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=48, ge=LEAST_TOKENS, le=2**16, description="Tokens a pair at most, drawn at random.")
    partners: int = Field(
        default=1_500, ge=0, le=2**20, description="Pairs (i, another) tried as a null, over all pairs (i, j)."
    )
    random_tokens: int = Field(
        default=2_000, ge=0, le=2**24, description="Co-active pairs on a token drawn at random, for the headlines."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PairDifference:
    """T2 of a pair; means over its tokens. Where there are no numbers `not_testable` says why."""

    i: int
    j: int
    tokens: int
    iota: float | None = None
    additive_failure: float | None = None
    """AAF: share of tokens on which the additive logits have another largest one."""
    additive_kl_nats: float | None = None
    """From the output to what the additive logits say."""
    effect_i: float | None = None
    """E|d_i|"""
    effect_j: float | None = None
    loss_difference_nats: float | None = None
    """E|second difference of the loss of the label|."""
    loss_curvature_nats: float | None = None
    """The same of the part that additive logits foretell: curvature of the softmax, nothing that the pair does."""
    loss_rest_nats: float | None = None
    """The same of the rest; signs may differ, so the two need not add up."""
    frozen_iota: float | None = None
    """With routers above held to what they chose with both."""
    frozen_additive_failure: float | None = None
    rerouting_iota: float | None = None
    """E|D2 - frozen D2| in the same unit: what comes of other experts being chosen above."""
    hidden: bool | None = None
    """iota is above the null, and the additive logits fail. None where there is no null."""
    curvature: bool | None = None
    """iota is above the null, but it is the softmax's curvature alone: so it is with redundant experts."""
    not_testable: str | None = None

    def row(self) -> dict[str, Any]:
        """By name."""
        return {of.name: getattr(self, of.name) for of in fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Null:
    """iota of the same i with other experts, whose E|d| is in the same decile as j's."""

    iota_X: Floats
    tried: int
    threshold: float | None
    """The 99th percentile."""
    not_testable: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondDifferences:
    """T2 of a block."""

    pairs: list[PairDifference]
    """As they were given."""
    null: Null
    headlines: dict[str, Headline]
    """hs, the share of co-active pairs on a token whose additive logits fail; additivity_r2, which is
    1 - E|D2|^2 / E|d_i + d_j|^2; both of random draws, and again with routers frozen (`frozen_hs`, ...)."""


def second_differences(
    model: LanguageModel,
    record: ActivationRecord,
    block: int,
    pairs: Sequence[tuple[int, int]],
    config: SecondDifferenceConfig | None = None,
    *,
    seed: int = 0,
) -> SecondDifferences:
    """T2 of these pairs of a block, on tokens of the record, read as when they were recorded.

    Mistake for a record of another model, and for pairs of which one expert is not in the pool.
    """
    record.check_is_of(model)
    of_block = record_of(layer_tensors(record, block))
    tokens_WT = record.tensors["token"].long().view(-1, record.spec.context_length)
    states = ModelStates(model=model, block=block, tokens_WT=tokens_WT)
    return differences_of(states, of_block, pairs, config or SecondDifferenceConfig(), seed=seed)


def differences_of(
    states: States, record: Record, pairs: Sequence[tuple[int, int]], config: SecondDifferenceConfig, *, seed: int = 0
) -> SecondDifferences:
    """The same of whatever answers for the rows of a record."""
    _check(pairs, record.experts)
    rng, firings = np.random.default_rng(seed), firings_of(record)
    tested = [(i, j, some_of(firings.rows_of_both(i, j), config.tokens, rng)) for i, j in pairs]
    tried, pair_X = partners_of(record, firings, tested, config.partners, rng)
    draws = draw(firings, rng, config.random_tokens)
    first_R, second_R = firings.name_F[draws.first_R], firings.name_F[draws.second_R]
    asked = [
        _asked(tested), _asked(tried),
        _Asked(number_P=first_R, first_P=first_R, second_P=second_R, row_P=firings.row_T[draws.token_R]),
    ]  # fmt: skip
    measured = _measure(states, asked, record.label_T)
    means = _Measured.means(measured[0], asked[0].number_P, len(tested))
    null = _null(means, _Measured.means(measured[1], asked[1].number_P, len(tried)), pair_X)
    document_R, headlines = firings.document_T[draws.token_R], dict[str, Headline]()
    for prefix, effects in (("", measured[2].free), ("frozen_", measured[2].frozen)):
        headlines[f"{prefix}hs"] = mean_share(effects.fails_P, document_R)
        lost = mean_ratio(effects.difference_P**2, effects.sum_P**2, document_R)
        headlines[f"{prefix}additivity_r2"] = lost.less_than_one()
    return SecondDifferences(
        pairs=[_row(pair, means.of(number), null) for number, pair in enumerate(tested)], null=null, headlines=headlines
    )


def _check(pairs: Sequence[tuple[int, int]], experts: int) -> None:
    for i, j in pairs:
        wrong = [expert for expert in (i, j) if not 0 <= expert < experts]
        if wrong:
            raise Mistake(
                f"the pair {i}, {j}: expert {wrong[0]} is not in the pool, which goes from 0 to {experts - 1:,}"
            )
        if i == j:
            raise Mistake(f"the pair {i}, {j} is one expert; name two")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """Two experts on a token, and the number of their pair in a list."""

    number_P: Ints
    first_P: Ints
    second_P: Ints
    row_P: Ints


def _asked(pairs: Sequence[Placed]) -> _Asked:
    """All rows of each pair; none of a pair that has too few."""
    kept = [(number, *pair) for number, pair in enumerate(pairs) if len(pair[2]) >= LEAST_TOKENS]
    count = [len(row_X) for *_, row_X in kept]
    number_P, first_P, second_P = (np.repeat(np.array([pair[at] for pair in kept], np.int64), count) for at in range(3))
    row_P = np.concatenate([np.zeros(0, np.int64), *(row_X for *_, row_X in kept)])
    return _Asked(number_P=number_P, first_P=first_P, second_P=second_P, row_P=row_P)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    free: Effects
    frozen: Effects
    rerouting_P: Floats
    """|D2 - frozen D2|"""

    def of(self, place: Any) -> "_Measured":
        return _Measured(free=self.free.of(place), frozen=self.frozen.of(place), rerouting_P=self.rerouting_P[place])

    def means(self, number_P: Ints, numbers: int) -> "_Measured":
        count_C = np.maximum(np.bincount(number_P, minlength=numbers), 1)
        return _Measured(
            free=self.free.means(number_P, numbers),
            frozen=self.frozen.means(number_P, numbers),
            rerouting_P=np.bincount(number_P, self.rerouting_P, minlength=numbers) / count_C,
        )


def _measure(states: States, asked: Sequence[_Asked], label_T: NDArray[np.integer]) -> list[_Measured]:
    """Of each list what was asked, in its order."""
    row_P, first_P, second_P = (
        np.concatenate([getattr(of, name) for of in asked]) for name in ("row_P", "first_P", "second_P")
    )
    label_P = torch.from_numpy(label_T[row_P].astype(np.int64))
    every = _Measured(
        free=Effects.empty(len(row_P)), frozen=Effects.empty(len(row_P)), rerouting_P=np.zeros(len(row_P))
    )
    for some in states.of(*(torch.from_numpy(of_P) for of_P in (row_P, first_P, second_P))):
        free_XSV, frozen_XSV, place_X = some.by_mode[FREE], some.by_mode[FROZEN], some.place_P.numpy()
        label_X = label_P[some.place_P].to(free_XSV.device)
        every.free.put(place_X, effects_of(free_XSV, label_X))
        every.frozen.put(place_X, effects_of(frozen_XSV, label_X))
        apart_XV = second_difference(free_XSV) - second_difference(frozen_XSV)
        every.rerouting_P[place_X] = apart_XV.norm(dim=-1).cpu().numpy()
    ends = np.cumsum([len(of.row_P) for of in asked]).tolist()
    return [every.of(slice(first, last)) for first, last in zip([0, *ends], ends, strict=False)]


def _iota(effects: Effects, difference_C: Floats | None = None) -> Floats:
    """(C) of pairs' means. 0 where one of them does nothing."""
    effect_C = np.sqrt(effects.first_P * effects.second_P)
    over_C = effects.difference_P if difference_C is None else difference_C
    return np.divide(over_C, effect_C, out=np.zeros_like(effect_C), where=effect_C > 0)


def _null(pairs: _Measured, partners: _Measured, pair_X: Ints) -> Null:
    """Of the partners that were tried, those whose effect is in the decile of the partner that they stand for.

    Where a function is hidden, partners of one of its experts are no null: on the same tokens they meet the function
    too. So those of pairs that the threshold calls hidden are left out, and it is found anew, until it calls no more.
    """
    effect_C, effect_X = pairs.free.second_P, partners.free.second_P
    every = np.concatenate([effect_C[~np.isnan(effect_C)], effect_X])
    edges = np.quantile(every, np.arange(1, 10) / 10) if len(every) else np.zeros(0)
    kept_X = np.searchsorted(edges, effect_X) == np.searchsorted(edges, effect_C[pair_X])
    iota_C, iota_X, failure_C = _iota(pairs.free), _iota(partners.free), pairs.free.fails_P
    while True:
        null = _null_of(iota_X[kept_X], len(pair_X))
        hidden_C = (iota_C > math.inf if null.threshold is None else iota_C > null.threshold) & (
            failure_C >= LEAST_FAILURE
        )
        still_X = kept_X & ~hidden_C[pair_X]
        if still_X.sum() == kept_X.sum():
            return null
        kept_X = still_X


def _null_of(iota_X: Floats, tried: int) -> Null:
    if len(iota_X) < LEAST_PARTNERS:
        few = f"not testable: n = {len(iota_X)} of {LEAST_PARTNERS} matched partners"
        return Null(iota_X=iota_X, tried=tried, threshold=None, not_testable=few)
    return Null(iota_X=iota_X, tried=tried, threshold=float(np.quantile(iota_X, NULL_QUANTILE)))


def _row(pair: Placed, means: _Measured, null: Null) -> PairDifference:
    i, j, row_X = pair
    if len(row_X) < LEAST_TOKENS:
        few = f"not testable: n = {len(row_X)} of {LEAST_TOKENS}"
        return PairDifference(i=i, j=j, tokens=len(row_X), not_testable=few)
    free, frozen = means.free, means.frozen
    iota, failure = float(_iota(free)), float(free.fails_P)
    loss, rest = _known(free.loss_P), _known(free.rest_P)
    above = None if null.threshold is None else iota > null.threshold
    return PairDifference(
        i=i,
        j=j,
        tokens=len(row_X),
        iota=iota,
        additive_failure=failure,
        additive_kl_nats=float(free.kl_P),
        effect_i=float(free.first_P),
        effect_j=float(free.second_P),
        loss_difference_nats=loss,
        loss_curvature_nats=_known(free.curvature_P),
        loss_rest_nats=rest,
        frozen_iota=float(_iota(frozen)),
        frozen_additive_failure=float(frozen.fails_P),
        rerouting_iota=float(_iota(free, means.rerouting_P)),
        hidden=None if above is None else above and failure >= LEAST_FAILURE,
        curvature=None if above is None or loss is None or rest is None
        else above and failure < CURVATURE_FAILURE and rest < CURVATURE_REST * loss,
    )  # fmt: skip


def _known(value: Floats) -> float | None:
    return None if math.isnan(value) else float(value)
