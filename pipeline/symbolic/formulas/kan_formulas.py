"""Formulas of a few experts a second time, as pruned KANs: those with most output that would otherwise stay exact."""

# E experts, S samples of one, D model width, C candidate coordinates, K coordinates kept, P firings of one

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import Activation, activation
from pipeline.models.symbols import activation_code
from pipeline.models.tables.experts import TableExperts
from pipeline.run import current_run, steps
from pipeline.symbolic.formulas.fitting import (
    Formulas,
    Judge,
    Samples,
    firing_samples,
    function_formula_bits,
    judge_of,
    pursue_samples,
)
from pipeline.symbolic.formulas.kan_functions import NAMES
from pipeline.symbolic.formulas.kan_pruning import pruned
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.tiers import COEFFICIENT_BITS, Tier

SAMPLES = 600
"""Most firings that a KAN is trained on."""
CANDIDATES = 1.5
"""Coordinates that a KAN chooses from, over those that it keeps: the first that matching pursuit takes."""
FIRINGS_A_COORDINATE = 3
"""Fewer than these, and an expert is not tried: it has as many numbers to fit as values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KanFormulas:
    """One option a number of coordinates; the error is infinite for experts that it does not help."""

    formulas: list[Formulas]
    tried: int
    won: int
    """Experts for which no formula of matching pursuit with at most as many bits errs as little, nor one that was
    fitted on the KAN's own samples: only those keep theirs."""
    chosen: int
    """Experts that are written so in the end."""
    seconds: float


def none_tried() -> KanFormulas:
    return KanFormulas(formulas=[], tried=0, won=0, chosen=0, seconds=0.0)


def worth_trying(tier_E: Tensor, coordinates_E: Tensor, energy_E: Tensor, *, number: int, most: int) -> dict[int, int]:
    """Experts with the coordinates that they may keep: `number` of T0 with most output energy, which may keep `most`,
    and half as many of T1, from which showcases are chosen, which may keep as many as they have."""
    sizes: dict[int, int] = {}
    for tier, count in ((Tier.T0, number), (Tier.T1, number // 2)):
        energy_of_tier_E = energy_E * (tier_E == tier)
        found = energy_of_tier_E.topk(min(count, int((energy_of_tier_E > 0).sum()))).indices.tolist()
        sizes |= {e: most if tier == Tier.T0 else int(coordinates_E[e]) for e in found}
    return sizes


def fit_kans(
    experts: TableExperts,
    fit: LayerRecord,
    check: LayerRecord,
    sizes: Mapping[int, int],
    others: Sequence[Formulas],
    *,
    what: str,
) -> KanFormulas:
    """KANs of the experts in `sizes`, which says how many coordinates each may keep; judged as `others` are.

    A KAN is trained on `fit`, judged on `check`, and has the model's own activation as its outer function.
    """
    began = time.monotonic()
    counts = fit.events.count_E.tolist()
    tried = sorted(e for e, size in sizes.items() if counts[e] >= FIRINGS_A_COORDINATE * size)
    num_experts, width = others[0].index_EK.shape
    made = {size: _nothing(num_experts, width, size, fit.x_ND.shape[1], experts, others[0]) for size in sizes.values()}
    won = 0
    for at in steps(what, len(tried)):
        won += _fit_one(experts, fit, check, tried[at], made[sizes[tried[at]]], others)
    formulas = [made[size] for size in sorted(made)] if won else []
    return KanFormulas(formulas=formulas, tried=len(tried), won=won, chosen=0, seconds=time.monotonic() - began)


def _nothing(num_experts: int, width: int, size: int, d_model: int, experts: TableExperts, like: Formulas) -> Formulas:
    """Of no expert yet."""
    code = activation_code(experts.spec.activation)
    return Formulas(
        num_coordinates=size,
        index_EK=torch.zeros(num_experts, width, dtype=torch.int64),
        coefficient_EK=torch.zeros(num_experts, width),
        intercept_E=torch.zeros(num_experts),
        code_E=torch.full((num_experts,), code, dtype=torch.uint8),
        scale_E=torch.zeros(num_experts),
        offset_E=torch.zeros(num_experts),
        splines=like.splines,
        error_E=torch.full((num_experts,), torch.inf),
        bits_E=torch.full((num_experts,), function_formula_bits(size, d_model) + COEFFICIENT_BITS),
        exact=False,
    )


def _fit_one(
    experts: TableExperts,
    fit: LayerRecord,
    check: LayerRecord,
    expert: int,
    into: Formulas,
    others: Sequence[Formulas],
) -> bool:
    """Writes the expert's formula into the tables if it helps, and says whether it does."""
    act, expert_E, keep = activation(experts.spec.activation), torch.tensor([expert]), into.num_coordinates
    sample = firing_samples(fit, expert_E, SAMPLES)
    candidates = min(fit.x_ND.shape[1], math.ceil(CANDIDATES * keep))
    support = pursue_samples(experts, expert_E, sample, act, (keep, candidates))
    index_C, judge = support.index_EK[0], judge_of(check, expert_E, act)
    found = pruned(
        sample.x_ESD[0][:, index_C],
        act.f(sample.pre_ES[0]),
        sample.gate_ES[0].square(),
        NAMES.get(experts.spec.activation, experts.spec.activation),
        keep=keep,
        start=lambda kept_K: _pre_activation(sample, index_C[kept_K], act),
        seed=current_run().stream(f"kan of expert {expert}") % 2**32,
    )
    index_K = index_C[found.kept_K]
    z_P = judge.arguments(index_K[None], found.coefficient_K[None], torch.tensor([found.intercept]))
    error = float(judge.error(found.scale * act.f(z_P) + found.offset)[0])
    rivals = [float(o.error_E[expert]) for o in others if o.bits_E[expert] <= into.bits_E[expert]]
    rivals.append(_error_of_pursuit(sample, index_C[:keep], support.coefficients[keep][0], judge, act))
    if not all(error < rival for rival in rivals):
        return False  # also where it diverged: nan is not less
    into.index_EK[expert, :keep], into.coefficient_EK[expert, :keep] = index_K, found.coefficient_K
    into.intercept_E[expert], into.scale_E[expert], into.offset_E[expert] = found.intercept, found.scale, found.offset
    into.error_E[expert] = error
    return True


def _error_of_pursuit(sample: Samples, index_K: Tensor, coefficient_K1: Tensor, judge: Judge, act: Activation) -> float:
    """Of scale * act(z) with matching pursuit's z, as `fit_formulas` makes it, from these samples."""
    found_S = act.f(sample.x_ESD[0][:, index_K] @ coefficient_K1[:-1] + coefficient_K1[-1])
    weighted_S = sample.gate_ES[0].square() * found_S
    scale = (weighted_S @ act.f(sample.pre_ES[0])) / (weighted_S @ found_S + 1e-12)
    z_P = judge.arguments(index_K[None], coefficient_K1[None, :-1], coefficient_K1[-1:])
    return float(judge.error(scale * act.f(z_P))[0])


def _pre_activation(sample: Samples, index_K: Tensor, act: Activation) -> Tensor:
    """(K + 1) least squares of the one expert's u . x + b on these coordinates and an intercept, weighted."""
    x_SX = torch.cat([sample.x_ESD[0][:, index_K], torch.ones(sample.x_ESD.shape[1], 1)], dim=1).double()
    carried_S = (sample.gate_ES[0] * act.derivative(sample.pre_ES[0])).square().double()
    weighted_SX = x_SX * (carried_S + 0.02 * carried_S.mean())[:, None]
    gram_XX = weighted_SX.T @ x_SX
    ridge = 1e-4 * gram_XX.diagonal().mean() + 1e-12
    right_X = weighted_SX.T @ sample.pre_ES[0].double()
    return torch.linalg.solve(gram_XX + ridge * torch.eye(len(gram_XX), dtype=torch.float64), right_X).float()
