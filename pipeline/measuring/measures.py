"""How metrics are measured. Each has one name, with its unit, which artifacts/meanings.py puts into words.

They mean the same in manifests, cards, reports and tests. Losses are over the held-out split; comparisons are
paired, token by token, on the same windows.
"""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from kernels.expert_sum.reference import tokens_of_pairs
from kernels.product_key_topk import reference as product_keys
from pipeline.corpus.splits import Corpus, Split, held_out_windows
from pipeline.models.language_model import LanguageModel
from pipeline.models.monet import MonetRouting
from pipeline.models.peer.peer import PeerExperts, PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.tables.quantized import QuantizedExperts
from pipeline.models.transformer import Transformer
from pipeline.run import steps

# B windows, T tokens a window, V vocabulary, N tokens, E experts, P pairs


class MeasureConfig(BaseModel):
    """How much of the held-out split stands behind a metric."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: int = Field(default=65_536, ge=256, description="Held-out tokens, in windows spread evenly over the split.")
    batch_size: int = Field(default=16, ge=1, description="Windows a forward pass.")


def held_out_batches(
    corpus: Corpus, config: MeasureConfig, context_length: int, what: str = "measure"
) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, T) inputs and targets of the held-out windows, the same at every call: for what is reported."""
    return _batches(corpus.held_out, config, context_length, what)


def validation_batches(
    corpus: Corpus, config: MeasureConfig, context_length: int, what: str = "measure"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same of the validation split: for what is chosen."""
    return _batches(corpus.validation, config, context_length, what)


def _batches(split: Split, config: MeasureConfig, context_length: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    inputs_WT, targets_WT = held_out_windows(split, num_tokens=config.tokens, length=context_length)
    for batch in steps(what, math.ceil(len(inputs_WT) / config.batch_size)):
        rows = slice(batch * config.batch_size, (batch + 1) * config.batch_size)
        yield inputs_WT[rows], targets_WT[rows]


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """(B, T) cross-entropies in nats."""
    return F.cross_entropy(logits_BTV.float().transpose(1, 2), targets_BT, reduction="none")


class Nothing(nn.Module):
    """Experts that add nothing to the residual stream, at no cost."""

    def forward(self, x_ND: Tensor, routing: Any) -> Tensor:
        return torch.zeros_like(x_ND)


@contextmanager
def experts_zeroed(model: Transformer) -> Iterator[None]:
    """Within it, every expert layer of the model adds nothing to the residual stream."""
    experts = [block.moe for block in model.blocks()]
    try:
        for block in model.blocks():
            block.moe = Nothing()
        yield
    finally:
        for block, moe in zip(model.blocks(), experts, strict=True):
            block.moe = moe


@torch.no_grad()
def validation_loss(model: Transformer, corpus: Corpus, config: MeasureConfig, context_length: int) -> float:
    """Mean loss in nats a token on the validation split."""
    loss, device = WindowMean(), model.lm_head.weight.device
    for inputs_BT, targets_BT in validation_batches(corpus, config, context_length, "measure on validation"):
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
def measure(model: Transformer, corpus: Corpus, config: MeasureConfig, context_length: int) -> dict[str, float]:
    """Held-out loss of a model a token and a byte."""
    loss, nats, text_bytes, tokens = WindowMean(), 0.0, 0, 0
    for inputs_BT, targets_BT in held_out_batches(corpus, config, context_length):
        device = model.lm_head.weight.device
        losses_BT = token_losses(model(inputs_BT.to(device)), targets_BT.to(device))
        loss.add(losses_BT)
        nats += losses_BT.double().sum().item()
        text_bytes += int(corpus.token_bytes_V[targets_BT].sum())
        tokens += targets_BT.numel()
    return {
        "held_out_loss_nats": loss.mean,
        "held_out_loss_standard_error_nats": loss.standard_error,
        "held_out_bits_per_byte": nats / max(1, text_bytes) / math.log(2),
        "held_out_tokens_measured": float(tokens),
    }


@torch.no_grad()
def measure_against(
    student: Transformer, teacher: Transformer, corpus: Corpus, config: MeasureConfig, context_length: int
) -> dict[str, float]:
    """Held-out loss of the student, and paired with its teacher: increase, KL, share of the loss recovered."""
    own, increase, divergence, parent, ablated = WindowMean(), WindowMean(), WindowMean(), WindowMean(), WindowMean()
    nats, text_bytes, tokens = 0.0, 0, 0
    device = student.lm_head.weight.device
    for inputs_BT, targets_BT in held_out_batches(corpus, config, context_length, "measure against the parent"):
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
        text_bytes += int(corpus.token_bytes_V[targets_BT].sum())
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


def effective(gates_X: Tensor) -> float:
    """exp of the entropy of these gates, normalised to sum 1."""
    share_X = gates_X.double() / gates_X.double().sum()
    return math.exp(torch.special.entr(share_X).sum().item())


@torch.no_grad()
def measure_routing(
    model: LanguageModel, corpus: Corpus, config: MeasureConfig, context_length: int
) -> dict[str, float]:
    """How many experts are active and effective, and (jumprelu) whether retrieval obeys the firing rule."""
    gate_sums: dict[tuple[int, ...], Tensor] = {}
    pairs = tokens = 0
    mismatches: list[int] = []
    smaller = config.model_copy(update={"tokens": min(config.tokens, 16_384)})
    for inputs_BT, _ in held_out_batches(corpus, smaller, context_length, "measure routing"):
        trace = model.trace(inputs_BT.to(model.lm_head.weight.device))
        tokens += inputs_BT.numel()
        for layer, (block, routing) in enumerate(zip(model.blocks(), trace.routings, strict=True)):
            if isinstance(routing, MonetRouting) and block.router is not None:
                for axis, gate_NHI in enumerate((routing.gate1_NHI, routing.gate2_NHJ)):
                    for head in range(gate_NHI.shape[1]):
                        key = (layer, axis, head)
                        gate_sums[key] = gate_sums.get(key, torch.zeros(())) + gate_NHI[:, head].sum(0).cpu()
            elif isinstance(routing, PeerRouting) and isinstance(block.moe, PeerExperts | QuantizedExperts):
                expert_P, _, gate_P = block.moe.index(routing)
                sums_E = torch.zeros(block.moe.spec.num_experts).index_add(0, expert_P.cpu(), gate_P.float().cpu())
                gate_sums[(layer,)] = gate_sums.get((layer,), torch.zeros(())) + sums_E
                pairs += len(expert_P)
                if block.router is not None and routing.log_gate1_NHI is not None:
                    mismatches.append(firing_mismatches(block.router, routing))
    if not gate_sums:
        return {}
    sizes = [effective(sums) for sums in gate_sums.values()]
    numbers = {"effective_experts": sum(sizes) / len(sizes), "effective_experts_least": min(sizes)}
    if pairs:
        numbers["active_experts_per_token"] = pairs / tokens / len(model.blocks())
    if mismatches:  # a softmax router has no firing rule to be at odds with
        numbers["firing_mismatches"] = float(sum(mismatches))
    return numbers


def firing_mismatches(router: nn.Module, routing: PeerRouting) -> int:
    """Pairs on which retrieval and the rule, applied to every cell of the grid, do not agree."""
    if not isinstance(router, PeerRouter) or routing.log_gate1_NHI is None or routing.log_gate2_NHJ is None:
        raise AssertionError("only a jumprelu router has a firing rule")
    token_P, _, r_P, c_P = product_keys.product_key_threshold(
        routing.log_gate1_NHI, routing.log_gate2_NHJ, router.threshold_H
    )
    cells = router.spec.num_cells
    by_rule = torch.bincount(
        token_P * cells + r_P * router.spec.num_columns + c_P, minlength=len(routing.start_N1) * cells
    )
    retrieved_P = tokens_of_pairs(routing.start_N1)
    found = torch.bincount(retrieved_P * cells + routing.cell_P, minlength=len(routing.start_N1) * cells)
    return int((by_rule - found).abs().sum())


def measure_tables(model: LanguageModel) -> dict[str, float]:
    """Sizes of the expert tables of a PEER model, with biases and the index of cells, in bytes."""
    experts = next(block.moe for block in model.blocks())
    if not isinstance(experts, PeerExperts | QuantizedExperts):
        raise AssertionError("only PEER models have expert tables")
    entries = 2 * experts.spec.num_experts * model.shape.d_model
    beside_bytes = experts.bias.numel() * experts.bias.element_size() + experts.index.state_bytes()
    if isinstance(experts, PeerExperts):
        table_bytes = (experts.u.numel() + experts.v.numel()) * experts.u.element_size()
    else:
        table_bytes = experts.u.state_bytes() + experts.v.state_bytes()  # type: ignore[operator]
    return {
        "num_experts": float(experts.spec.num_experts),
        "expert_bytes": (table_bytes + beside_bytes) / experts.spec.num_experts,
        "table_bytes_per_parameter": (table_bytes + beside_bytes) / entries,
    }


def measure_training_tables(model: LanguageModel) -> dict[str, float]:
    """The same while they train: beside what is stored, AdamW holds two float32 moments of every expert's bias."""
    sizes = measure_tables(model)
    moments = 8 / (2 * model.shape.d_model)
    return {**sizes, "table_bytes_per_parameter": sizes["table_bytes_per_parameter"] + moments}


def measure_size(model: nn.Module) -> dict[str, float]:
    """Parameters of the model and the process's largest resident size so far."""
    return {
        "num_parameters": float(sum(p.numel() for p in model.parameters())),
        "peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }
