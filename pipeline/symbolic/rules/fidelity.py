"""What rules are worth: F1 against firing, and the squared error that they leave with a constant or with a formula."""

# N tokens, C candidate literals an expert, Q experts of a piece, R rules of them, W words of bits, P pairs (an expert
# and a token it fires on), T pairs (a rule and a token of which it is true)

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.activations import activation
from pipeline.models.tables.experts import TableExperts
from pipeline.symbolic.formulas.fitting import Formulas
from pipeline.symbolic.formulas.functions import apply_codes
from pipeline.symbolic.recording import LayerRecord
from pipeline.symbolic.rules.bit_sets import LiteralWords, everything, unpacked
from pipeline.symbolic.rules.circuits import Circuit, outputs


def true_words(rules: Sequence[tuple[int, Circuit]], literal_QC: Tensor, value_QCW: Tensor, num_tokens: int) -> Tensor:
    """(R, W) the sets of which rules are true, each of the expert at its place in Q, over that one's candidates."""
    values = [dict(zip(own, of, strict=True)) for own, of in zip(literal_QC.tolist(), value_QCW, strict=True)]
    return torch.stack([outputs(circuit, values[q]) for q, circuit in rules]) & everything(num_tokens)


@dataclass(frozen=True, slots=True)
class Sums:
    """(R) over the tokens of a sample, in double precision; m is gate * magnitude, F the formula, t the rule."""

    t: Tensor
    fires: Tensor
    fires_t: Tensor
    mm: Tensor
    mt: Tensor
    mFt: Tensor
    FFt: Tensor


def sums_of(
    experts: TableExperts,
    record: LayerRecord,
    words: LiteralWords,
    literal_QC: Tensor,
    expert_Q: Tensor,
    rules: Sequence[tuple[int, Circuit]],
    formulas: Formulas,
) -> Sums:
    """`rules` are of the experts at these places of `expert_Q`, over their candidates `literal_QC`."""
    value_QCW = words.of(literal_QC.flatten()).view(*literal_QC.shape, -1)
    true_RW = true_words(rules, literal_QC, value_QCW, len(record.x_ND))
    row_T, token_T = torch.nonzero(unpacked(true_RW, len(record.x_ND)), as_tuple=True)
    q_R = torch.tensor([q for q, _ in rules])
    magnitude_P = record.gate_P * activation(experts.spec.activation).f(record.pre_P)
    fired = record.events.of(expert_Q)
    m_QN = torch.zeros(len(expert_Q), len(record.x_ND))
    m_QN[fired.expert_P, fired.token_P] = magnitude_P[record.events.places(expert_Q)]
    fires_QN = fired.on_tokens()
    m_T, formula_T = m_QN[q_R[row_T], token_T], _formula_values(formulas, record.x_ND, expert_Q[q_R[row_T]], token_T)

    def over_rows(value_T: Tensor) -> Tensor:
        return torch.zeros(len(rules), dtype=torch.float64).index_add(0, row_T, value_T.double())

    return Sums(
        t=over_rows(torch.ones_like(m_T)),
        fires=fired.count_E[q_R].double(),
        fires_t=over_rows(fires_QN[q_R[row_T], token_T]),
        mm=m_QN.double().square().sum(1)[q_R],
        mt=over_rows(m_T),
        mFt=over_rows(m_T * formula_T),
        FFt=over_rows(formula_T.square()),
    )


def worth(fit: Sums, check: Sums) -> tuple[list[float], ...]:
    """F1, constant, its error, scale and its error of each rule: constant and scale from `fit`, the rest of `check`."""
    f1 = 2 * check.fires_t / (check.fires + check.t).clamp(min=1)
    constant = fit.mt / fit.t.clamp(min=1)
    scale = fit.mFt / (fit.FFt + 1e-12)
    constant_error = (check.mm - 2 * constant * check.mt + constant.square() * check.t).clamp(min=0)
    function_error = (check.mm - 2 * scale * check.mFt + scale.square() * check.FFt).clamp(min=0)
    return f1.tolist(), constant.tolist(), constant_error.tolist(), scale.tolist(), function_error.tolist()


def _formula_values(formulas: Formulas, x_ND: Tensor, expert_T: Tensor, token_T: Tensor) -> Tensor:
    """(T) magnitudes by formula, catalogue functions alone."""
    few = formulas.num_coordinates
    at_TK = token_T[:, None] * x_ND.shape[1] + formulas.index_EK[expert_T, :few]
    z_T = (formulas.coefficient_EK[expert_T, :few] * x_ND.flatten()[at_TK]).sum(1) + formulas.intercept_E[expert_T]
    value_T = apply_codes(formulas.code_E[expert_T], z_T)
    return formulas.scale_E[expert_T] * value_T + formulas.offset_E[expert_T]
