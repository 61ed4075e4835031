"""Losses at the points where their values are known."""

import math

import pytest
import torch

from pipeline.models.monet import MonetRouting
from pipeline.training.losses import ambiguity, layer_match, logit_kl, next_token, uniformity

# B sequences, T tokens a sequence, V vocabulary, N tokens, H heads, I sub-experts of an axis
B, T, V, N, H, I = 3, 7, 11, 21, 2, 5


def logits(seed):
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed)) * 2


def test_next_token_loss_is_the_mean_of_minus_the_log_probability():
    logits_BTV = logits(0)
    targets_BT = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(1))
    wanted = 0.0
    for b in range(B):
        for t in range(T):
            exp_V = logits_BTV[b, t].double().exp()
            wanted -= math.log(exp_V[targets_BT[b, t]] / exp_V.sum()) / (B * T)
    assert next_token(logits_BTV, targets_BT).item() == pytest.approx(wanted, rel=1e-5)


def test_kl_is_of_the_teacher_to_the_student_and_a_mean_over_tokens():
    student, teacher = logits(0), logits(1)
    p, q = torch.softmax(teacher.double(), -1), torch.softmax(student.double(), -1)
    wanted = (p * (p / q).log()).sum(-1).mean().item()
    assert logit_kl(student, teacher).item() == pytest.approx(wanted, rel=1e-5)
    assert logit_kl(teacher, student).item() != pytest.approx(wanted, rel=1e-2)


def test_kl_to_itself_is_nothing_and_shifts_do_not_count():
    assert logit_kl(logits(0), logits(0)).item() == pytest.approx(0, abs=1e-6)
    assert logit_kl(logits(0) + 5, logits(0)).item() == pytest.approx(0, abs=1e-5)


def test_layer_match_is_a_share_of_the_teachers_mean_square():
    teacher = [torch.randn(N, 12, generator=torch.Generator().manual_seed(s)) * 10**s for s in range(3)]
    assert layer_match(teacher, teacher).item() == 0
    assert layer_match([torch.zeros_like(t) for t in teacher], teacher).item() == pytest.approx(1)
    assert layer_match([1.1 * t for t in teacher], teacher).item() == pytest.approx(0.01, rel=1e-4)
    halved = [teacher[0], 0 * teacher[1], teacher[2]]
    assert layer_match(halved, teacher).item() == pytest.approx(1 / 3)


def one_hot(index_NH):
    return torch.nn.functional.one_hot(index_NH, I).float()


def test_uniformity_is_least_where_every_sub_expert_is_used_as_much():
    """Each token may be as sharp as it likes: only the batch mean counts."""
    balanced = one_hot((torch.arange(20)[:, None] + torch.arange(H)) % I)
    flat = torch.full((20, H, I), 1 / I)
    skewed = torch.softmax(torch.arange(I) / 2.0, 0).expand(20, H, I)
    for routing in (MonetRouting(balanced, flat), MonetRouting(balanced, balanced)):
        assert uniformity([routing]).item() == pytest.approx(math.log(I), rel=1e-5)
    assert uniformity([MonetRouting(flat, skewed)]).item() > math.log(I) + 0.05


def test_ambiguity_is_nothing_for_one_sub_expert_and_most_for_all():
    sharp = one_hot(torch.zeros(N, H, dtype=torch.int64))
    flat = torch.full((N, H, I), 1 / I)
    assert ambiguity([MonetRouting(sharp, sharp)]).item() == 0
    assert ambiguity([MonetRouting(flat, flat)]).item() == pytest.approx(1 - 1 / I)
    assert ambiguity([MonetRouting(flat, sharp)]).item() == pytest.approx((1 - 1 / I) / 2)


def test_auxiliary_losses_are_means_over_routers():
    flat = MonetRouting(*(torch.full((N, H, I), 1 / I),) * 2)
    skewed = MonetRouting(*(torch.softmax(torch.arange(I) / 2.0, 0).expand(N, H, I),) * 2)
    for loss in (uniformity, ambiguity):
        assert loss([flat, skewed]).item() == pytest.approx((loss([flat]).item() + loss([skewed]).item()) / 2)
