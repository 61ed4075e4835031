"""When a score, a feature or a coordinate is high: a gate says it of scores, the upper tail of all others."""

# N tokens, E quantities (scores, features or coordinates), H heads, I sub-keys of rows, J of columns

import torch
from torch import Tensor

from pipeline.models.peer.router import PeerRouter
from pipeline.symbolic.names.names import symbol

TAIL = 0.05
"""Share of a sample's tokens on which a feature or coordinate is called high."""


def score_keys_of(router: PeerRouter) -> list[tuple[str, int, int]]:
    """(axis, head, sub-key) of all scores, heads of the rows first."""
    spec = router.spec
    return [
        (axis, head, key)
        for axis, count in (("A", spec.num_keys), ("B", spec.num_columns))
        for head in range(spec.num_heads)
        for key in range(count)
    ]


def score_symbols(router: PeerRouter) -> list[str]:
    return [symbol(*key) for key in score_keys_of(router)]


def scores_high(router: PeerRouter, raw: tuple[Tensor, Tensor]) -> Tensor:
    """(N, E) bool of these (N, H, I) and (N, H, J) scores: whether a pair with the score can fire, as the gate says."""
    return torch.cat([part.flatten(1) for part in router.gate.high(router, raw)], dim=1)


def upper_tail(value_NE: Tensor) -> Tensor:
    """(E) the limits above which TAIL of the tokens lie; never below 0, so that high is positive."""
    rank = max(1, round(TAIL * len(value_NE)))
    return value_NE.topk(min(rank + 1, len(value_NE)), dim=0).values[-1].clamp(min=0)
