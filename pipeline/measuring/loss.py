"""Losses of a model on held-out text, alone and paired with its parent's, token by token, on the same windows.

Metrics have one name each, with its unit, which artifacts/meanings.py puts into words; they mean the same in manifests,
cards, reports and tests.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.measuring.held_out import HeldOut
from pipeline.measuring.swapped import experts_zeroed
from pipeline.models.transformer import Transformer

# B windows, T tokens a window, V vocabulary


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """(B, T) cross-entropies in nats."""
    return F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")


@torch.no_grad()
def validation_loss(model: Transformer, held_out: HeldOut) -> float:
    """Mean loss in nats a token on the validation split."""
    loss, device = WindowMean(), model.lm_head.weight.device
    for inputs_BT, targets_BT in held_out.validation_batches():
        loss.add(token_losses(model(inputs_BT.to(device)), targets_BT.to(device)))
    return loss.mean


class WindowMean:
    """Mean and standard error over windows."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, values_BT: Tensor) -> None:
        self.rows.append(values_BT.double().mean(1).cpu())

    @property
    def mean(self) -> float:
        return torch.cat(self.rows).mean().item()

    @property
    def standard_error(self) -> float:
        windows = torch.cat(self.rows)
        return (windows.std() / math.sqrt(len(windows))).item() if len(windows) > 1 else 0.0


@torch.no_grad()
def measure(model: Transformer, held_out: HeldOut) -> dict[str, float]:
    """Held-out loss of a model a token and a byte."""
    loss, nats, text_bytes, tokens = WindowMean(), 0.0, 0, 0
    for inputs_BT, targets_BT in held_out.batches():
        device = model.lm_head.weight.device
        losses_BT = token_losses(model(inputs_BT.to(device)), targets_BT.to(device))
        loss.add(losses_BT)
        nats += losses_BT.double().sum().item()
        text_bytes += int(held_out.corpus.token_bytes_V[targets_BT].sum())
        tokens += targets_BT.numel()
    return {
        "held_out_loss_nats": loss.mean,
        "held_out_loss_standard_error_nats": loss.standard_error,
        "held_out_bits_per_byte": nats / max(1, text_bytes) / math.log(2),
        "held_out_tokens_measured": float(tokens),
    }


@torch.no_grad()
def measure_against(student: Transformer, teacher: Transformer, held_out: HeldOut) -> dict[str, float]:
    """Held-out loss of the student, and paired with its teacher: increase, KL, share of the loss recovered."""
    own, increase, divergence, parent, ablated = WindowMean(), WindowMean(), WindowMean(), WindowMean(), WindowMean()
    nats, text_bytes, tokens = 0.0, 0, 0
    device = student.lm_head.weight.device
    for inputs_BT, targets_BT in held_out.batches("measure against the parent"):
        inputs, targets = inputs_BT.to(device), targets_BT.to(device)
        student_BTV, teacher_BTV = student(inputs), teacher(inputs)
        with experts_zeroed(teacher):
            ablated.add(token_losses(teacher(inputs), targets))
        student_loss_BT, teacher_loss_BT = (
            token_losses(student_BTV, targets),
            token_losses(teacher_BTV, targets),
        )
        own.add(student_loss_BT)
        parent.add(teacher_loss_BT)
        increase.add(student_loss_BT - teacher_loss_BT)
        log_student, log_teacher = (
            F.log_softmax(student_BTV.float(), -1),
            F.log_softmax(teacher_BTV.float(), -1),
        )
        divergence.add((log_teacher.exp() * (log_teacher - log_student)).sum(-1))
        nats += student_loss_BT.double().sum().item()
        text_bytes += int(held_out.corpus.token_bytes_V[targets_BT].sum())
        tokens += targets_BT.numel()
    return {
        "held_out_loss_nats": own.mean,
        "held_out_loss_standard_error_nats": own.standard_error,
        "held_out_bits_per_byte": nats / max(1, text_bytes) / math.log(2),
        "held_out_tokens_measured": float(tokens),
        "loss_increase_nats": increase.mean,
        "loss_increase_standard_error_nats": increase.standard_error,
        "kl_to_teacher_nats": divergence.mean,
        "loss_without_experts_nats": ablated.mean,
        "loss_recovered": (ablated.mean - own.mean) / (ablated.mean - parent.mean),
    }
