"""Formulas for every expert of a block: sparse u by matching pursuit, then an activation, a function or a spline."""

# E experts (of a piece), S samples an expert, D model width, P pairs (an expert and a token), K coordinates

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import activation
from pipeline.models.quantized import Int4Table, QuantizedExperts
from pipeline.models.symbols import activation_code
from pipeline.run import steps
from pipeline.symbolic.functions import SPLINE_CODE, apply_codes
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.sparse import matching_pursuit
from pipeline.symbolic.spline import KNOTS, Splines, evaluate_pairs, fit_splines, snap
from pipeline.symbolic.tiers import COEFFICIENT_BITS

EXPERTS_A_PIECE = 256
CODE_BITS = 4.0


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


def fit_formulas(
    experts: QuantizedExperts,
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


def _joined(parts: list[Formulas]) -> Formulas:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    splines = Splines(
        *(torch.cat([getattr(p.splines, n) for p in parts]) for n in ("low_E", "high_E", "coefficient_EK"))
    )
    return Formulas(
        num_coordinates=parts[0].num_coordinates,
        splines=splines,
        **{name: cat(name) for name in ("index_EK", "coefficient_EK", "intercept_E", "code_E")},
        **{name: cat(name) for name in ("scale_E", "offset_E", "error_E", "bits_E")},
    )


@dataclass(frozen=True, slots=True)
class _Samples:
    """At most S firings of each expert of a piece; weight 0 where there are fewer."""

    x_ESD: Tensor
    gate_ES: Tensor
    pre_ES: Tensor
    used_ES: Tensor


def _samples(record: LayerRecord, expert_E: Tensor, samples: int) -> _Samples:
    """Firings spread evenly over the record."""
    start_E, count_E = record.start_E1[expert_E], record.count_E[expert_E]
    take_E = count_E.clamp(max=samples)
    slot_S = torch.arange(int(take_E.max().clamp(min=1)))
    used_ES = slot_S < take_E[:, None]
    rank_ES = slot_S * count_E[:, None] // take_E[:, None].clamp(min=1)
    pair_ES = torch.where(used_ES, start_E[:, None] + rank_ES, 0).clamp(max=max(0, len(record.token_P) - 1))
    return _Samples(record.x_ND[record.token_P[pair_ES]], record.gate_P[pair_ES], record.pre_P[pair_ES], used_ES)


def _fit_piece(
    experts: QuantizedExperts,
    expert_E: Tensor,
    fit: LayerRecord,
    check: LayerRecord,
    ladder: tuple[int, ...],
    samples: int,
) -> list[Formulas]:
    act = activation(experts.spec.activation)
    sample = _samples(fit, expert_E, samples)
    assert isinstance(experts.u, Int4Table)
    u_ED, bias_E = experts.u.rows(expert_E), experts.bias.detach()[expert_E]
    # An error of the pre-activation counts as far as gate and slope carry it on; a little counts everywhere.
    carried_ES = (sample.gate_ES * act.derivative(sample.pre_ES)).square() * sample.used_ES
    floor_E1 = 0.02 * carried_ES.sum(1, keepdim=True) / sample.used_ES.sum(1, keepdim=True).clamp(min=1)
    weight_ES = (carried_ES + floor_E1) * sample.used_ES
    support = matching_pursuit(sample.x_ESD, weight_ES, u_ED, bias_E, ladder)

    gate2_ES = sample.gate_ES.square() * sample.used_ES
    true_ES = act.f(sample.pre_ES)
    pairs = slice(int(check.start_E1[expert_E[0]]), int(check.start_E1[expert_E[-1] + 1]))
    local_P = torch.repeat_interleave(torch.arange(len(expert_E)), check.count_E[expert_E])
    token_P, gate_P, check_true_P = check.token_P[pairs], check.gate_P[pairs], act.f(check.pre_P[pairs])

    def error(magnitude_P: Tensor) -> Tensor:
        wrong_P = (gate_P * (magnitude_P - check_true_P)).square()
        return torch.zeros(len(expert_E)).index_add(0, local_P, wrong_P)

    found = []
    width = sample.x_ESD.shape[-1]
    for size in ladder:
        index_EK, full_EK = support.index_EK[:, :size], support.coefficients[size]
        coefficient_EK, intercept_E = full_EK[:, :-1], full_EK[:, -1]
        z_ES = (
            sample.x_ESD.gather(2, index_EK[:, None].expand(-1, sample.x_ESD.shape[1], -1)) * coefficient_EK[:, None]
        ).sum(-1)
        z_ES = z_ES + intercept_E[:, None]
        x_PK = check.x_ND.flatten()[token_P[:, None] * width + index_EK[local_P]]
        z_P = (x_PK * coefficient_EK[local_P]).sum(-1) + intercept_E[local_P]

        known_ES = act.f(z_ES)
        scale_E = (gate2_ES * known_ES * true_ES).sum(1) / ((gate2_ES * known_ES.square()).sum(1) + 1e-12)
        splines = fit_splines(z_ES, true_ES, gate2_ES)
        snapped = snap(z_ES, true_ES, gate2_ES)
        zeros_E, rows = torch.zeros_like(scale_E), size * (COEFFICIENT_BITS + math.log2(width))
        shared_bits = rows + 2 * COEFFICIENT_BITS + CODE_BITS  # intercept and scale

        def formulas(code_E: Tensor, scale_E: Tensor, offset_E: Tensor, magnitude_P: Tensor, bits: float) -> Formulas:
            padded = torch.zeros(len(expert_E), max(ladder))
            return Formulas(
                num_coordinates=size,  # noqa: B023 - used before the loop goes on
                index_EK=padded.long().index_copy(1, torch.arange(size), index_EK),  # noqa: B023
                coefficient_EK=padded.index_copy(1, torch.arange(size), coefficient_EK),  # noqa: B023
                intercept_E=intercept_E,  # noqa: B023
                code_E=code_E,
                scale_E=scale_E,
                offset_E=offset_E,
                splines=splines,  # noqa: B023
                error_E=error(magnitude_P),
                bits_E=torch.full((len(expert_E),), bits),
            )

        known_code_E = torch.full_like(snapped.code_E, activation_code(experts.spec.activation))
        found.append(formulas(known_code_E, scale_E, zeros_E, scale_E[local_P] * act.f(z_P), shared_bits))
        snapped_P = snapped.scale_E[local_P] * apply_codes(snapped.code_E[local_P], z_P) + snapped.offset_E[local_P]
        found.append(
            formulas(snapped.code_E, snapped.scale_E, snapped.offset_E, snapped_P, shared_bits + COEFFICIENT_BITS)
        )
        spline_P = evaluate_pairs(splines, local_P, z_P)
        spline_code_E = torch.full_like(snapped.code_E, SPLINE_CODE)
        spline_bits = rows + CODE_BITS + (KNOTS + 2 + 3) * COEFFICIENT_BITS  # coefficients, both ends, intercept
        found.append(formulas(spline_code_E, torch.ones_like(scale_E), zeros_E, spline_P, spline_bits))
    return found
