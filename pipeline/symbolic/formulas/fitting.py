"""Formulas for every expert of a block: sparse u by matching pursuit, then an activation, a function or a spline."""

# E experts (of a piece), S samples an expert, D model width, P pairs (an expert and a token), K coordinates

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import Activation, activation
from pipeline.models.symbols import activation_code
from pipeline.models.tables.experts import TableExperts
from pipeline.run import steps
from pipeline.symbolic.formulas.functions import SPLINE_CODE, apply_codes
from pipeline.symbolic.formulas.spline import KNOTS, Splines, evaluate_pairs, fit_splines, snap
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.tiers import COEFFICIENT_BITS
from pipeline.transforms.pursuit import Support, matching_pursuit

EXPERTS_A_PIECE = 256
CODE_BITS = 5.0
"""Of a function, one of at most 32."""


@dataclass(frozen=True, slots=True)
class Formulas:
    """One way to write every expert's magnitude: scale * f(coefficient . x[index] + intercept) + offset."""

    num_coordinates: int
    index_EK: Tensor
    coefficient_EK: Tensor
    intercept_E: Tensor
    code_E: Tensor
    scale_E: Tensor
    offset_E: Tensor
    splines: Splines
    """Of every expert; only those of code SPLINE_CODE use theirs."""
    error_E: Tensor
    """Sum over the checking sample's firings of the squared error of gate * magnitude."""
    bits_E: Tensor
    exact: bool
    """Whether they are the experts themselves, and no approximation."""


def fit_formulas(
    experts: TableExperts,
    fit: LayerRecord,
    check: LayerRecord,
    *,
    ladder: tuple[int, ...],
    samples: int,
    what: str,
) -> list[Formulas]:
    """For each number of coordinates in the ladder three ways: the known activation, a catalogue function, a spline.

    Fitted on `fit` (at most `samples` firings an expert), judged on `check`.
    """
    num_experts = experts.spec.num_experts
    pieces = []
    for piece in steps(what, math.ceil(num_experts / EXPERTS_A_PIECE)):
        expert_E = torch.arange(piece * EXPERTS_A_PIECE, min(num_experts, (piece + 1) * EXPERTS_A_PIECE))
        pieces.append(_fit_piece(experts, expert_E, fit, check, ladder, samples))
    return [_joined([piece[i] for piece in pieces]) for i in range(len(pieces[0]))]


def own_formulas(experts: TableExperts, splines: Splines) -> Formulas:
    """Every expert as it is, of rows of u that are sparse already: nothing is lost, and few coordinates are named."""
    terms, num_experts = experts.spec.u_terms, experts.spec.num_experts
    u_ED = experts.u.rows(torch.arange(num_experts))
    index_EK = u_ED.abs().topk(min(terms, u_ED.shape[1]), dim=1).indices
    coefficient_EK = u_ED.gather(1, index_EK)
    term_bits = COEFFICIENT_BITS + math.log2(u_ED.shape[1])
    return Formulas(
        num_coordinates=index_EK.shape[1],
        index_EK=index_EK,
        coefficient_EK=coefficient_EK,
        intercept_E=experts.bias.detach().clone(),
        code_E=torch.full((num_experts,), activation_code(experts.spec.activation), dtype=torch.uint8),
        scale_E=torch.ones(num_experts),
        offset_E=torch.zeros(num_experts),
        splines=splines,
        error_E=torch.zeros(num_experts),
        bits_E=(coefficient_EK != 0).sum(1) * term_bits + CODE_BITS + COEFFICIENT_BITS,
        exact=True,
    )


def _joined(parts: list[Formulas]) -> Formulas:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    splines = Splines(
        *(torch.cat([getattr(p.splines, n) for p in parts]) for n in ("low_E", "high_E", "coefficient_EK"))
    )
    return Formulas(
        num_coordinates=parts[0].num_coordinates,
        splines=splines,
        exact=parts[0].exact,
        **{name: cat(name) for name in ("index_EK", "coefficient_EK", "intercept_E", "code_E")},
        **{name: cat(name) for name in ("scale_E", "offset_E", "error_E", "bits_E")},
    )


@dataclass(frozen=True, slots=True)
class Samples:
    """At most S firings of each expert of a piece; weight 0 where there are fewer."""

    x_ESD: Tensor
    gate_ES: Tensor
    pre_ES: Tensor
    used_ES: Tensor


def firing_samples(record: LayerRecord, expert_E: Tensor, samples: int) -> Samples:
    """Firings spread evenly over the record."""
    fired = record.events
    start_E, count_E = fired.start_E1[expert_E], fired.count_E[expert_E]
    take_E = count_E.clamp(max=samples)
    slot_S = torch.arange(int(take_E.max().clamp(min=1)))
    used_ES = slot_S < take_E[:, None]
    rank_ES = slot_S * count_E[:, None] // take_E[:, None].clamp(min=1)
    pair_ES = torch.where(used_ES, start_E[:, None] + rank_ES, 0).clamp(max=max(0, len(fired.token_P) - 1))
    return Samples(record.x_ND[fired.token_P[pair_ES]], record.gate_P[pair_ES], record.pre_P[pair_ES], used_ES)


def _fit_piece(
    experts: TableExperts,
    expert_E: Tensor,
    fit: LayerRecord,
    check: LayerRecord,
    ladder: tuple[int, ...],
    samples: int,
) -> list[Formulas]:
    act = activation(experts.spec.activation)
    sample = firing_samples(fit, expert_E, samples)
    support = pursue_samples(experts, expert_E, sample, act, ladder)
    judge = judge_of(check, expert_E, act)
    known_code = activation_code(experts.spec.activation)
    return [formulas for size in ladder for formulas in _ways(size, support, sample, judge, act, known_code)]


def pursue_samples(
    experts: TableExperts, expert_E: Tensor, sample: Samples, act: Activation, ladder: tuple[int, ...]
) -> Support:
    """Matching pursuit of these experts' u on their samples, each weighted by what an error there would do."""
    # An error of the pre-activation counts as far as gate and slope carry it on; a little counts everywhere.
    carried_ES = (sample.gate_ES * act.derivative(sample.pre_ES)).square() * sample.used_ES
    floor_E1 = 0.02 * carried_ES.sum(1, keepdim=True) / sample.used_ES.sum(1, keepdim=True).clamp(min=1)
    weight_ES = (carried_ES + floor_E1) * sample.used_ES
    return matching_pursuit(sample.x_ESD, weight_ES, experts.u.rows(expert_E), experts.bias.detach()[expert_E], ladder)


@dataclass(frozen=True, slots=True)
class Judge:
    """The checking sample's firings of a piece: what a formula should have said there."""

    x_ND: Tensor
    token_P: Tensor
    gate_P: Tensor
    true_P: Tensor
    local_P: Tensor
    """Each pair's expert, counted within the piece."""
    num_experts: int

    def error(self, magnitude_P: Tensor) -> Tensor:
        """(E) summed squared error of gate * magnitude."""
        wrong_P = (self.gate_P * (magnitude_P - self.true_P)).square()
        return torch.zeros(self.num_experts).index_add(0, self.local_P, wrong_P)

    def arguments(self, index_EK: Tensor, coefficient_EK: Tensor, intercept_E: Tensor) -> Tensor:
        """(P) the formula's argument on each pair."""
        index_PK = self.token_P[:, None] * self.x_ND.shape[1] + index_EK[self.local_P]
        x_PK = self.x_ND.flatten()[index_PK]
        return (x_PK * coefficient_EK[self.local_P]).sum(-1) + intercept_E[self.local_P]


def judge_of(check: LayerRecord, expert_E: Tensor, act: Activation) -> Judge:
    fired = check.events
    pairs = slice(int(fired.start_E1[expert_E[0]]), int(fired.start_E1[expert_E[-1] + 1]))
    local_P = torch.repeat_interleave(torch.arange(len(expert_E)), fired.count_E[expert_E])
    true_P = act.f(check.pre_P[pairs])
    return Judge(check.x_ND, fired.token_P[pairs], check.gate_P[pairs], true_P, local_P, len(expert_E))


def function_formula_bits(size: int, d_model: int) -> float:
    """Of scale * f(z), z of `size` coordinates and an intercept; an offset is one more coefficient."""
    return size * (COEFFICIENT_BITS + math.log2(d_model)) + CODE_BITS + 2 * COEFFICIENT_BITS


def _ways(
    size: int, support: Support, sample: Samples, judge: Judge, act: Activation, known_code: int
) -> list[Formulas]:
    """The known activation, the best catalogue function and a spline, of the same `size` coordinates."""
    index_EK, full_EK = support.index_EK[:, :size], support.coefficients[size]
    coefficient_EK, intercept_E = full_EK[:, :-1], full_EK[:, -1]
    x_ESK = sample.x_ESD.gather(2, index_EK[:, None].expand(-1, sample.x_ESD.shape[1], -1))
    z_ES = (x_ESK * coefficient_EK[:, None]).sum(-1) + intercept_E[:, None]
    z_P = judge.arguments(index_EK, coefficient_EK, intercept_E)
    true_ES, weight_ES = act.f(sample.pre_ES), sample.gate_ES.square() * sample.used_ES

    known_ES = act.f(z_ES)
    known_scale_E = (weight_ES * known_ES * true_ES).sum(1) / ((weight_ES * known_ES.square()).sum(1) + 1e-12)
    snapped = snap(z_ES, true_ES, weight_ES, known_code)
    splines = fit_splines(z_ES, true_ES, weight_ES)
    ones_E, zeros_E = torch.ones_like(known_scale_E), torch.zeros_like(known_scale_E)
    snapped_P = apply_codes(snapped.code_E[judge.local_P], z_P)
    spline_P = evaluate_pairs(splines, judge.local_P, z_P)

    coordinate_bits = size * (COEFFICIENT_BITS + math.log2(judge.x_ND.shape[1]))
    function_bits = function_formula_bits(size, judge.x_ND.shape[1])
    spline_bits = coordinate_bits + CODE_BITS + (KNOTS + 2 + 3) * COEFFICIENT_BITS  # with both ends and intercept
    ways = (
        (torch.full_like(snapped.code_E, known_code), known_scale_E, zeros_E, act.f(z_P), function_bits),
        (snapped.code_E, snapped.scale_E, snapped.offset_E, snapped_P, function_bits + COEFFICIENT_BITS),
        (torch.full_like(snapped.code_E, SPLINE_CODE), ones_E, zeros_E, spline_P, spline_bits),
    )
    padded_EK = torch.zeros(judge.num_experts, support.index_EK.shape[1])
    columns = torch.arange(size)
    return [
        Formulas(
            num_coordinates=size,
            index_EK=padded_EK.long().index_copy(1, columns, index_EK),
            coefficient_EK=padded_EK.index_copy(1, columns, coefficient_EK),
            intercept_E=intercept_E,
            code_E=code_E,
            scale_E=scale_E,
            offset_E=offset_E,
            splines=splines,
            error_E=judge.error(scale_E[judge.local_P] * value_P + offset_E[judge.local_P]),
            bits_E=torch.full((judge.num_experts,), bits),
            exact=False,
        )
        for code_E, scale_E, offset_E, value_P, bits in ways
    ]
