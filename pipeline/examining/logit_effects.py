"""What two experts do to logits, each and together, from the logits with both, without either and without both.

    d_i = l - l_-i                      what i adds; l, centred logits with both
    A   = l_-i + l_-j - l_-ij           the logits if both added what each adds
    D2  = l - A                         what they add together beyond that

Centred, since a constant on all logits says nothing.
"""

# P co-active pairs on a token, S the states of each, V vocabulary, C pairs of experts

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effects:
    """Of co-active pairs on a token."""

    first_P: Floats
    """|d_i|"""
    second_P: Floats
    """|d_j|"""
    sum_P: Floats
    """|d_i + d_j|"""
    difference_P: Floats
    """|D2|"""
    fails_P: Floats
    """1 where A has another largest logit than l."""
    kl_P: Floats
    """Nats from what l says to what A says."""
    loss_P: Floats
    """|second difference| of the loss of the label, nats; NaN where there is no label."""
    curvature_P: Floats
    """The same with A for l: what softmax makes of a sum."""
    rest_P: Floats
    """|loss of l - loss of A|: the difference of the two, whose signs may differ."""

    def __len__(self) -> int:
        return len(self.first_P)

    @classmethod
    def empty(cls, pairs: int) -> "Effects":
        """To be filled by `put`."""
        return cls(**{of.name: np.zeros(pairs) for of in fields(cls)})

    def put(self, place: NDArray[np.int64], some: "Effects") -> None:
        """Fills in these. They are copied: small arrays that stay between large ones leave the heap in pieces."""
        for of in fields(self):
            getattr(self, of.name)[place] = getattr(some, of.name)

    def of(self, place: NDArray[np.int64] | slice) -> "Effects":
        return Effects(**{of.name: getattr(self, of.name)[place] for of in fields(self)})

    def means(self, number_P: NDArray[np.int64], numbers: int) -> "Effects":
        """(C) of the pairs that these numbers name; NaN of one without tokens, or without labels."""
        return Effects(**{of.name: _means(getattr(self, of.name), number_P, numbers) for of in fields(self)})


def effects_of(logits_PSV: Tensor, label_P: Tensor) -> Effects:
    """States are: with both, without the first, without the second, without both; a label below 0 is none."""
    both, no_first, no_second, neither = centred(logits_PSV).unbind(1)
    additive = no_first + no_second - neither
    losses = [_losses(logits, label_P) for logits in (both, no_first, no_second, neither, additive)]
    loss, loss_no_first, loss_no_second, loss_neither, loss_additive = losses
    apart = loss_neither - loss_no_first - loss_no_second
    kl = F.kl_div(additive.log_softmax(-1), both.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    measured = {
        "first_P": (both - no_first).norm(dim=-1),
        "second_P": (both - no_second).norm(dim=-1),
        "sum_P": (2 * both - no_first - no_second).norm(dim=-1),
        "difference_P": (both - additive).norm(dim=-1),
        "fails_P": additive.argmax(-1) != both.argmax(-1),
        "kl_P": kl,
        "loss_P": (loss + apart).abs(),
        "curvature_P": (loss_additive + apart).abs(),
        "rest_P": (loss - loss_additive).abs(),
    }
    return Effects(**{name: of_P.double().cpu().numpy() for name, of_P in measured.items()})


def second_difference(logits_PSV: Tensor) -> Tensor:
    """(P, V) D2."""
    both, no_first, no_second, neither = centred(logits_PSV).unbind(1)
    return both - (no_first + no_second - neither)


def centred(logits_PSV: Tensor) -> Tensor:
    """float64: differences of differences lose the digits of float32."""
    wide_PSV = logits_PSV.double()
    return wide_PSV - wide_PSV.mean(-1, keepdim=True)


def _losses(logits_PV: Tensor, label_P: Tensor) -> Tensor:
    losses_P = F.cross_entropy(logits_PV, label_P.clamp(min=0), reduction="none")
    return losses_P.where(label_P >= 0, torch.nan)


def _means(value_P: Floats, number_P: NDArray[np.int64], numbers: int) -> Floats:
    known_P = ~np.isnan(value_P)
    count_C = np.bincount(number_P[known_P], minlength=numbers)
    sum_C = np.bincount(number_P[known_P], value_P[known_P], minlength=numbers)
    return np.where(count_C > 0, sum_C / np.maximum(count_C, 1), np.nan)
