"""Losses of training and distillation, in nats a token unless said otherwise."""

# B sequences, T tokens a sequence, N = B * T tokens, V vocabulary, H heads, I sub-experts of an axis

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.models.monet import MonetRouting


def next_token(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the next token."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())


def logit_kl(student_BTV: Tensor, teacher_BTV: Tensor) -> Tensor:
    """Mean KL(teacher || student) over tokens."""
    student, teacher = (F.log_softmax(z.flatten(0, 1).float(), dim=-1) for z in (student_BTV, teacher_BTV))
    return F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def layer_match(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of the squared error of (N, D) outputs, as a share of the teacher's mean square. No unit."""
    shares = [(s - t).square().mean() / t.square().mean() for s, t in zip(student, teacher, strict=True)]
    return torch.stack(shares).mean()


def uniformity(routings: Sequence[MonetRouting]) -> Tensor:
    """Monet eq. 16 to 18: mean over axes, heads and sub-experts of -log of the batch-mean gate. Least: log n.

    Taken of the mean gate, since a token's own gates hold zeros; averaged over the router groups.
    """
    gates = [gate for r in routings for gate in (r.gate1_NHI, r.gate2_NHJ)]
    return torch.stack([-(gate.mean(0) + 1e-9).log().mean() for gate in gates]).mean()


def ambiguity(routings: Sequence[MonetRouting]) -> Tensor:
    """Monet eq. 16 to 18: mean over tokens, axes and heads of one minus the largest gate. In [0, 1)."""
    gates = [gate for r in routings for gate in (r.gate1_NHI, r.gate2_NHJ)]
    return torch.stack([(1 - gate.amax(-1)).mean() for gate in gates]).mean()
