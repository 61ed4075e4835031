"""How many experts a model uses, and whether retrieval obeys the firing rule."""

import math

import torch
from torch import Tensor

from kernels.pairs import tokens_of_pairs
from kernels.product_key_topk import reference as product_keys
from pipeline.measuring.held_out import HeldOut
from pipeline.models.language_model import LanguageModel
from pipeline.models.monet import MonetRouting
from pipeline.models.peer.experts import PeerExperts
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.routing import PeerRouting
from pipeline.models.tables.experts import QuantizedExperts

# N tokens, E experts, P pairs, H heads, I sub-keys of the rows, J of the columns


def effective(gates_X: Tensor) -> float:
    """exp of the entropy of these gates, normalised to sum 1."""
    share_X = gates_X.double() / gates_X.double().sum()
    return math.exp(torch.special.entr(share_X).sum().item())


@torch.no_grad()
def measure_routing(model: LanguageModel, held_out: HeldOut) -> dict[str, float]:
    """How many experts are active and effective, and whether retrieval obeys the firing rule, if the gate has one."""
    gate_sums: dict[tuple[int, ...], Tensor] = {}
    pairs = tokens = 0
    mismatches: list[int] = []
    for inputs_BT, _ in held_out.few.batches("measure routing"):
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
                if isinstance(block.router, PeerRouter) and block.router.gate.limits(block.router) is not None:
                    mismatches.append(firing_mismatches(block.router, routing))
    if not gate_sums:
        return {}
    sizes = [effective(sums) for sums in gate_sums.values()]
    numbers = {"effective_experts": sum(sizes) / len(sizes), "effective_experts_least": min(sizes)}
    if pairs:
        numbers["active_experts_per_token"] = pairs / tokens / len(model.blocks())
    if mismatches:
        numbers["firing_mismatches"] = float(sum(mismatches))
    return numbers


def firing_mismatches(router: PeerRouter, routing: PeerRouting) -> int:
    """Pairs on which retrieval and the rule, applied to every cell of the grid, do not agree."""
    row_NHI, column_NHJ, limit_H = routing.log_gate1_NHI, routing.log_gate2_NHJ, router.gate.limits(router)
    if row_NHI is None or column_NHJ is None or limit_H is None:
        raise AssertionError(f"the {router.spec.gate} gate compares pairs with each other, which is no rule for one")
    token_P, _, r_P, c_P = product_keys.product_key_threshold(row_NHI, column_NHJ, limit_H)
    cells = router.spec.num_cells
    by_rule = torch.bincount(
        token_P * cells + r_P * router.spec.num_columns + c_P, minlength=len(routing.start_N1) * cells
    )
    retrieved_P = tokens_of_pairs(routing.start_N1)
    found = torch.bincount(retrieved_P * cells + routing.cell_P, minlength=len(routing.start_N1) * cells)
    return int((by_rule - found).abs().sum())
