"""How many experts a model uses, and whether retrieval obeys the firing rule."""

import math

import torch
from torch import Tensor

from pipeline.corpus.splits import Corpus
from pipeline.measuring.held_out import MeasureConfig, held_out_batches
from pipeline.models.language_model import LanguageModel

# X experts, or parts of them, that share a gate out


def effective(gates_X: Tensor) -> float:
    """exp of the entropy of these gates, normalised to sum 1."""
    share_X = gates_X.double() / gates_X.double().sum()
    return math.exp(torch.special.entr(share_X).sum().item())


@torch.no_grad()
def measure_routing(
    model: LanguageModel, corpus: Corpus, config: MeasureConfig, context_length: int
) -> dict[str, float]:
    """How many experts are active and effective, and (jumprelu) whether retrieval obeys the firing rule."""
    gate_sums: dict[tuple[int, int], Tensor] = {}
    pairs = tokens = 0
    mismatches: list[int] = []
    smaller = config.model_copy(update={"tokens": min(config.tokens, 16_384)})
    for inputs_BT, _ in held_out_batches(corpus, smaller, context_length, "measure routing"):
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
