"""Firing as logic over tokens: for every expert the best gate of two literals, where one says enough to be worth it."""

# N tokens, E experts, L literals, V vocabulary, C candidate literals an expert, Q experts searched, P pairs

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import activation
from pipeline.models.quantized import QuantizedExperts
from pipeline.run import steps
from pipeline.symbolic.formulas import Formulas
from pipeline.symbolic.functions import apply_codes
from pipeline.symbolic.logic import GATE_OUTPUT_G4, BestGates, Literals, best_gates
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.tiers import COEFFICIENT_BITS, GATE_BITS
from pipeline.symbolic.token_logic import TokenStatements, best_statements, candidates, with_own_sets

WORTH_SEARCHING_F1 = 0.6
"""Of the best single literal: below it no gate of two came near the R2 bound (tiny Shakespeare model, 2026-11)."""
EXPERTS_A_PIECE = 64


@dataclass(frozen=True, slots=True)
class Statements:
    """For every expert one gate of two literals; `f1_E` is 0 where none was worth searching."""

    literals: Literals
    """The shared ones first, then two sets of tokens for every expert: of the current and of the previous token."""
    names: list[str]
    gate_E: Tensor
    a_E: Tensor
    b_E: Tensor
    f1_E: Tensor
    """Of the statement against firing, on the checking sample."""
    token_logic: TokenStatements
    """The best statement of every expert, worth a tier or not."""
    rate_E: Tensor
    """Share of tokens on which the expert fires: the F1 of a random statement of the same rate."""
    constant_E: Tensor
    constant_error_E: Tensor
    """Squared error of the statement with a constant magnitude, on the checking sample."""
    function_scale_E: Tensor
    function_error_E: Tensor
    """Squared error of the statement with the expert's formula times a constant."""
    bits_E: Tensor


def fit_statements(
    experts: QuantizedExperts,
    fit: LayerRecord,
    check: LayerRecord,
    shared: Literals,
    names: list[str],
    formulas: Formulas,
    *,
    what: str,
) -> Statements:
    """Searches on `fit`, judges on `check`. `formulas` gives the magnitude of the second kind of statement."""
    num_experts = experts.spec.num_experts
    literals = with_own_sets(fit.events, shared)
    num_shared = len(shared.offset_L)

    fit_x_DN, check_x_DN = fit.x_ND.T.contiguous(), check.x_ND.T.contiguous()
    candidate_EC, single_f1_E = candidates(fit.events, shared, literals)
    searched_Q = torch.nonzero(single_f1_E >= WORTH_SEARCHING_F1)[:, 0]
    result = {
        name: torch.zeros(num_experts) for name in ("f1", "constant", "constant_error", "scale", "function_error")
    }
    result["constant_error"] += torch.inf
    result["function_error"] += torch.inf
    gate_E, a_E, b_E = (torch.zeros(num_experts, dtype=torch.int64) for _ in range(3))
    for piece in steps(what, math.ceil(len(searched_Q) / EXPERTS_A_PIECE)):
        expert_Q = searched_Q[piece * EXPERTS_A_PIECE : (piece + 1) * EXPERTS_A_PIECE]
        fire_QN, _ = _dense(experts, fit, expert_Q)
        value_QCN = _values(literals, fit.context_ON, candidate_EC[expert_Q])
        best = best_gates(
            (value_QCN * fire_QN[:, None]) @ value_QCN.mT,
            fire_QN.sum(1),
            value_QCN @ value_QCN.mT,
            candidate_EC[expert_Q],
            fire_QN.shape[1],
        )
        gate_E[expert_Q], a_E[expert_Q], b_E[expert_Q] = best.kind_E, best.a_E, best.b_E
        judged = _judge(experts, fit, check, fit_x_DN, check_x_DN, literals, expert_Q, best, formulas)
        for name, value_Q in judged.items():
            result[name][expert_Q] = value_Q
    literal_bits_L = _literal_bits(literals, num_shared)
    return Statements(
        literals=literals,
        names=names + [f"own set of expert {e}, token[{-b}]" for b in (0, 1) for e in range(num_experts)],
        gate_E=gate_E,
        a_E=a_E,
        b_E=b_E,
        f1_E=result["f1"],
        token_logic=best_statements(fit.events, check.events, literals, candidate_EC),
        rate_E=check.count_E / len(check.x_ND),
        constant_E=result["constant"],
        constant_error_E=result["constant_error"],
        function_scale_E=result["scale"],
        function_error_E=result["function_error"],
        bits_E=GATE_BITS + literal_bits_L[a_E] + literal_bits_L[b_E],
    )


def _dense(experts: QuantizedExperts, record: LayerRecord, expert_Q: Tensor) -> tuple[Tensor, Tensor]:
    """(Q, N) whether each expert fires on each token, and gate * activation there."""
    fire_QN = torch.zeros(len(expert_Q), len(record.x_ND))
    magnitude_QN = torch.zeros_like(fire_QN)
    act = activation(experts.spec.activation).f
    for row, expert in enumerate(expert_Q.tolist()):
        pairs = slice(int(record.start_E1[expert]), int(record.start_E1[expert + 1]))
        fire_QN[row, record.token_P[pairs]] = 1.0
        magnitude_QN[row, record.token_P[pairs]] = record.gate_P[pairs] * act(record.pre_P[pairs])
    return fire_QN, magnitude_QN


def _values(literals: Literals, context_ON: Tensor, literal_QC: Tensor) -> Tensor:
    """(Q, C, N) float 0 or 1: each expert's own candidates."""
    named_U, where_QC = torch.unique(literal_QC, return_inverse=True)
    return literals.values(context_ON, named_U).float()[where_QC]


def _judge(
    experts: QuantizedExperts,
    fit: LayerRecord,
    check: LayerRecord,
    fit_x_DN: Tensor,
    check_x_DN: Tensor,
    literals: Literals,
    expert_Q: Tensor,
    best: BestGates,
    formulas: Formulas,
) -> dict[str, Tensor]:
    """F1, constant and errors of these statements: constants from `fit`, the rest from `check`."""
    fit_true_QN = _truth(literals, fit.context_ON, best)
    true_QN = _truth(literals, check.context_ON, best)
    _, fit_magnitude_QN = _dense(experts, fit, expert_Q)
    fire_QN, magnitude_QN = _dense(experts, check, expert_Q)
    constant_Q = (fit_magnitude_QN * fit_true_QN).sum(1) / fit_true_QN.sum(1).clamp(min=1)
    fit_formula_QN = _formula_values(formulas, expert_Q, fit_x_DN) * fit_true_QN
    formula_QN = _formula_values(formulas, expert_Q, check_x_DN) * true_QN
    scale_Q = (fit_formula_QN * fit_magnitude_QN).sum(1) / (fit_formula_QN.square().sum(1) + 1e-12)
    return {
        "f1": 2 * (fire_QN * true_QN).sum(1) / (fire_QN.sum(1) + true_QN.sum(1)).clamp(min=1),
        "constant": constant_Q,
        "constant_error": (magnitude_QN - constant_Q[:, None] * true_QN).square().sum(1),
        "scale": scale_Q,
        "function_error": (magnitude_QN - scale_Q[:, None] * formula_QN).square().sum(1),
    }


def _truth(literals: Literals, context_ON: Tensor, best: BestGates) -> Tensor:
    a_QN, b_QN = _values(literals, context_ON, torch.stack([best.a_E, best.b_E], dim=1)).long().unbind(1)
    return GATE_OUTPUT_G4[best.kind_E[:, None], 2 * a_QN + b_QN].float()


def _formula_values(formulas: Formulas, expert_Q: Tensor, x_DN: Tensor) -> Tensor:
    """(Q, N) magnitudes by formula, catalogue functions alone."""
    index_QK = formulas.index_EK[expert_Q, : formulas.num_coordinates]
    coefficient_QK = formulas.coefficient_EK[expert_Q, : formulas.num_coordinates]
    z_QN = torch.stack([c_K @ x_DN[i_K] for c_K, i_K in zip(coefficient_QK, index_QK, strict=True)])
    z_QN = z_QN + formulas.intercept_E[expert_Q, None]
    value_QN = apply_codes(formulas.code_E[expert_Q, None].expand_as(z_QN), z_QN)
    return formulas.scale_E[expert_Q, None] * value_QN + formulas.offset_E[expert_Q, None]


def _literal_bits(literals: Literals, num_shared: int) -> Tensor:
    """(L) bits to name a literal: an entry of the shared list, or the tokens of a set of one's own."""
    vocabulary = literals.member_LV.shape[1]
    bits_L = literals.member_LV.sum(1) * math.log2(vocabulary) + COEFFICIENT_BITS / 2
    bits_L[:num_shared] = math.log2(max(2, num_shared))
    return bits_L
