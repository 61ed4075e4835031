"""How many experts a model uses, and whether retrieval obeys the firing rule."""

import math

import torch
from torch import Tensor

from pipeline.measuring.held_out import HeldOut
from pipeline.models.language_model import LanguageModel

# X experts, or parts of them, that share a gate out


def effective(gates_X: Tensor) -> float:
    """exp of the entropy of these gates, normalised to sum 1."""
    share_X = gates_X.double() / gates_X.double().sum()
    return math.exp(torch.special.entr(share_X).sum().item())


@torch.no_grad()
def measure_routing(model: LanguageModel, held_out: HeldOut) -> dict[str, float]:
    """How many experts are active and effective, and whether retrieval obeys the firing rule, if the gate has one."""
    gate_sums: dict[tuple[int, int], Tensor] = {}
    pairs = tokens = 0
    mismatches: list[int] = []
    for inputs_BT, _ in held_out.few.batches("measure routing"):
        tokens += inputs_BT.numel()
        for layer, visit in enumerate(model.walk(inputs_BT.to(model.lm_head.weight.device))):
            use = model.use_of(visit)
            for number, sums_X in enumerate(use.gate_sums):
                key = layer, number
                gate_sums[key] = gate_sums.get(key, torch.zeros(())) + sums_X
            pairs += use.pairs
            if use.mismatches is not None:
                mismatches.append(use.mismatches)
    if not gate_sums:
        return {}
    sizes = [effective(sums) for sums in gate_sums.values()]
    numbers = {"effective_experts": sum(sizes) / len(sizes), "effective_experts_least": min(sizes)}
    if pairs:
        numbers["active_experts_per_token"] = pairs / tokens / len(model.blocks())
    if mismatches:
        numbers["firing_mismatches"] = float(sum(mismatches))
    return numbers
