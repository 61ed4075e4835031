"""Figures of a record: how many experts fire, what was left out, how evenly the pool is used."""

# T tokens, K experts kept a token, E experts of a block

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.records.record import ActivationRecord

_ROWS = 2**16
"""Read at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockUse:
    """One block of a record."""

    count_E: Tensor
    """int64: tokens on which an expert is kept."""
    fired: Tensor
    """(F) int64: on how many tokens 0, 1, ... experts fire."""
    omitted_share: float
    """Mean over tokens."""

    @property
    def fired_mean(self) -> float:
        return (self.fired * torch.arange(len(self.fired))).sum().item() / max(1, int(self.fired.sum()))


def use_of(record: ActivationRecord, block: int) -> BlockUse:
    count_E = torch.zeros(record.spec.experts[block], dtype=torch.int64)
    for expert_TK in record.of_block(block, "expert").split(_ROWS):
        count_E += torch.bincount(expert_TK[expert_TK >= 0].long(), minlength=len(count_E))
    fired_T, omitted_T = record.of_block(block, "fired"), record.of_block(block, "omitted_share")
    return BlockUse(
        count_E=count_E, fired=torch.bincount(fired_T.long()), omitted_share=omitted_T.double().mean().item()
    )


def record_metrics(record: ActivationRecord, uses: list[BlockUse]) -> dict[str, float]:
    """By the names in artifacts/meanings.py."""
    spec = record.spec
    kept = sum(use.count_E.sum().item() for use in uses)
    experts = sum(spec.experts)
    sizes = [tensor.nbytes for name, tensor in record.tensors.items() if name.startswith("layers.")]
    return {
        "recorded_tokens": float(spec.tokens),
        "recorded_documents": float(len(torch.unique(record.tensors["document"]))),
        "recorded_domains": float(len(spec.domains)),
        "recorded_loss_nats": record.tensors["loss_nats"].double().mean().item(),
        "fired_experts_per_token": sum(use.fired_mean for use in uses) / len(uses),
        "kept_experts_per_token": kept / spec.tokens / len(uses),
        "omitted_share_mean": sum(use.omitted_share for use in uses) / len(uses),
        "omitted_share_most": max(use.omitted_share for use in uses),
        "experts_seen_share": sum(int((use.count_E > 0).sum()) for use in uses) / experts,
        "record_bytes_per_block": sum(sizes) / len(uses),
    }
