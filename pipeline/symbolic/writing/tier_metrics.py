"""What the chosen descriptions of all blocks come to: shares of tiers, how faithful they are, and how long."""

# E experts

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts, SymbolSpec, activation_code
from pipeline.symbolic.tiers import COEFFICIENT_BITS, Tier
from pipeline.symbolic.writing.assembly import BlockSymbols
from pipeline.symbolic.writing.held_out import Firing
from pipeline.symbolic.writing.length_curve import formula_coordinates_median, r2_energy_weighted, readable_energy_share


@dataclass(frozen=True, slots=True)
class _Kinds:
    """(E) bool: how a readable expert is written; each of them is of one kind."""

    verbatim: Tensor
    """The neuron itself: its activation of its own few coordinates, with its own coefficients."""
    shortened: Tensor
    """Its activation of other coordinates or coefficients, as a rule of fewer."""
    other_function: Tensor
    rule: Tensor
    """Fired by token logic, with a formula or a constant."""


def tier_metrics(blocks: Sequence[BlockSymbols], model: LanguageModel) -> dict[str, float]:
    """`blocks` bring energies and errors of the sample that is reported of, `model` their tables."""
    tier_E, energy_E = _all(blocks, "tier_E"), _all(blocks, "energy_E")
    token_f1_E = torch.cat([block.statements.token_logic.f1_E for block in blocks])
    rate_E = _all(blocks, "rate_E")
    sparse_E = (tier_E == Tier.T1) | (tier_E == Tier.T2)
    coordinates_E, gates_E = _all(blocks, "coordinates_E"), _all(blocks, "gates_E")
    bits, biases = _mean(_all(blocks, "bits_E")), axis_bias_bits(model) / len(tier_E)
    return {
        **{f"expert_share_{tier.name.lower()}": _mean(tier_E == tier) for tier in Tier},
        **{f"energy_share_{tier.name.lower()}": _share_of(energy_E, tier_E == tier) for tier in Tier},
        "readable_energy_share": readable_energy_share(blocks),
        **_kind_shares(blocks, model, energy_E),
        "token_logic_f1_mean": _mean(token_f1_E[rate_E > 0]),
        "token_logic_f1_same_rate_null_mean": _mean(rate_E[rate_E > 0]),
        "r2_energy_weighted": r2_energy_weighted(blocks),
        "description_bits_per_expert": bits,
        "description_bits_per_expert_exact": _mean(_all(blocks, "exact_bits_E")),
        "description_bits_axis_biases_per_expert": biases,
        "description_bits_per_expert_with_biases": bits + biases,
        "formula_coordinates_median": formula_coordinates_median(blocks),
        "formula_coordinates_mean": _mean(coordinates_E[sparse_E]),
        "gates_per_rule_mean": _mean(gates_E[gates_E > 0]),
        "rule_gates_total": float(gates_E.sum()),
        "rule_gates_pass_through": float(_all(blocks, "passing_E").sum()),
        "kan_experts_tried": float(sum(block.kans.tried for block in blocks)),
        "kan_experts_won": float(sum(block.kans.won for block in blocks)),
        "kan_experts_chosen": float(sum(block.kans.chosen for block in blocks)),
        "kan_seconds": sum(block.kans.seconds for block in blocks),
        "block_loss_recovered_least": min(block.recovered for block in blocks),
    }


def firing_metrics(blocks: Sequence[BlockSymbols], firing: Sequence[Firing]) -> dict[str, float]:
    """How the executed symbols fire against the model they were made from, and their rules by themselves."""
    tier_E, rate_E, rule_f1_E = (_all(blocks, name) for name in ("tier_E", "rate_E", "f1_E"))
    f1_E = torch.cat([of.f1_E for of in firing])
    fires_E = rate_E > 0
    kept_E = (tier_E != Tier.T4) & fires_E
    return {
        "firing_f1_mean": _mean(f1_E[kept_E]),
        "firing_f1_mean_dropped_as_zero": _mean(f1_E[fires_E]),
        "firing_f1_same_rate_null_mean": _mean(rate_E[kept_E]),
        "rule_firing_f1_mean": _mean(rule_f1_E[kept_E]),
    }


def axis_bias_bits(model: LanguageModel) -> float:
    """Of all axis biases, which symbols keep as dense numbers, at the price of a coefficient."""
    biases = [experts.axis_bias for experts in model.expert_layers_of(SymbolExperts)]
    return COEFFICIENT_BITS * sum(table.numel() for bias in biases if bias is not None for table in bias.parameters())


def _kind_shares(blocks: Sequence[BlockSymbols], model: LanguageModel, energy_E: Tensor) -> dict[str, float]:
    own = model.spec.experts_as(SymbolSpec).peer.activation
    kinds = [_kinds(block, own) for block in blocks]
    found = {}
    for name in ("verbatim", "shortened", "other_function", "rule"):
        of_E = torch.cat([getattr(kind, name) for kind in kinds])
        found[f"{name}_expert_share"] = _mean(of_E)
        found[f"{name}_energy_share"] = _share_of(energy_E, of_E)
    return found


def _kinds(block: BlockSymbols, activation: str) -> _Kinds:
    formula_E = block.tier_E == Tier.T1
    own_function_E = block.tables["code_E"] == activation_code(activation)
    return _Kinds(
        verbatim=formula_E & block.exact_E,
        shortened=formula_E & ~block.exact_E & own_function_E,
        other_function=formula_E & ~own_function_E,
        rule=(block.tier_E == Tier.T2) | (block.tier_E == Tier.T3),
    )


def _all(blocks: Sequence[BlockSymbols], name: str) -> Tensor:
    """(E) of all blocks."""
    return torch.cat([getattr(block, name) for block in blocks])


def _mean(value_E: Tensor) -> float:
    """0 of none."""
    return float(value_E.float().mean()) if len(value_E) else 0.0


def _share_of(energy_E: Tensor, chosen_E: Tensor) -> float:
    return float(energy_E[chosen_E].sum() / energy_E.sum())
