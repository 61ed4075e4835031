"""`jump_router` by stock torch ops, and by product_key_threshold for the pairs."""

# N tokens, H heads, I sub-keys of the rows, J of the columns, X either, S scores, R features, P pairs that fire,
# Q scores that pass

import torch
from torch import Tensor

from kernels.jump_router.checks import refuse
from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows
from kernels.pairs import starts
from kernels.product_key_topk import product_key_threshold


def forward(read_XN: Tensor, rows: SparseRows | None, statistics: AxisStatistics, rule: Rule) -> Fired:
    score_SN = read_XN if rows is None else sparse_scores(read_XN, rows)
    if not bool(score_SN.isfinite().all()):
        refuse("score")
    heads, tokens = len(statistics.threshold_H), score_SN.shape[1]
    cut = heads * rule.num_rows
    row_NHI = _log_gates(score_SN[:cut], statistics.row_mean_H, statistics.row_var_H, rule)
    column_NHJ = _log_gates(score_SN[cut:], statistics.column_mean_H, statistics.column_var_H, rule)
    token_P, head_P, row_P, column_P = product_key_threshold(row_NHI, column_NHJ, statistics.threshold_H)
    gate_P = torch.exp(row_NHI[token_P, head_P, row_P] + column_NHJ[token_P, head_P, column_P])
    log_gate_NS = torch.cat([row_NHI.flatten(1), column_NHJ.flatten(1)], dim=1)
    token_Q, score_Q = torch.nonzero(log_gate_NS > -torch.inf, as_tuple=True)
    log_gate_Q = log_gate_NS[token_Q, score_Q]
    return Fired(
        cell_P=row_P * column_NHJ.shape[-1] + column_P,
        start_N1=starts(torch.bincount(token_P, minlength=tokens)),
        gate_P=gate_P,
        score_Q=score_Q.to(torch.int32),
        key_start_N1=starts(torch.bincount(token_Q, minlength=tokens)),
        log_gate_Q=log_gate_Q,
        gate_Q=log_gate_Q.exp(),
    )


def sparse_scores(feature_RN: Tensor, rows: SparseRows) -> Tensor:
    """(S, N)"""
    if not bool(((rows.index_SK >= 0) & (rows.index_SK < len(feature_RN))).all()):
        refuse("index")
    weight_SR = rows.coefficient_SK.new_zeros(len(rows.index_SK), len(feature_RN))
    weight_SR.scatter_add_(1, rows.index_SK.long(), rows.coefficient_SK)
    return torch.addmm(rows.intercept_S[:, None], weight_SR, feature_RN)


def _log_gates(score_XN: Tensor, mean_H: Tensor, var_H: Tensor, rule: Rule) -> Tensor:
    score_NHX = score_XN.T.unflatten(1, (len(mean_H), -1))
    deviation_H1 = torch.sqrt(var_H + rule.epsilon)[:, None]
    best_NH1 = score_NHX.amax(-1, keepdim=True)
    limit_NH1 = torch.minimum(
        best_NH1 - rule.tie_margin * deviation_H1, mean_H[:, None] + rule.deviations * deviation_H1
    )
    return torch.log_softmax(score_NHX.masked_fill(score_NHX < limit_NH1, -torch.inf), dim=-1)
