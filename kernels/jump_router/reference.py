"""The oracles of `jump_router`: token by token, pair by pair, in double precision. Never optimised."""

# N tokens, H heads, I sub-keys of the rows, J of the columns, S scores, R features, P pairs, Q scores that pass

import math

import torch
from torch import Tensor

from kernels.jump_router.tables import AxisStatistics, Fired, Rule, SparseRows


def jump_router(score_SN: Tensor, statistics: AxisStatistics, rule: Rule) -> Fired:
    """What fires and passes, by the rule's definition; numbers are float64."""
    heads = len(statistics.threshold_H)
    rows = rule.num_rows
    columns = len(score_SN) // heads - rows
    pairs, passing, start, key_start = [], [], [0], [0]
    for score_S in score_SN.double().T.tolist():
        gates = []
        for h in range(heads):
            row = axis_log_gates(
                score_S[h * rows : (h + 1) * rows],
                float(statistics.row_mean_H[h]), float(statistics.row_var_H[h]), rule,
            )  # fmt: skip
            first = heads * rows + h * columns
            column = axis_log_gates(
                score_S[first : first + columns],
                float(statistics.column_mean_H[h]), float(statistics.column_var_H[h]), rule,
            )  # fmt: skip
            gates.append((row, column))
            for r, a in row.items():
                for c, b in column.items():
                    if a + b > float(statistics.threshold_H[h]):
                        pairs.append((r * columns + c, math.exp(a + b)))
        passing += [(h * rows + r, a) for h, (row, _) in enumerate(gates) for r, a in row.items()]
        passing += [
            (heads * rows + h * columns + c, b) for h, (_, column) in enumerate(gates) for c, b in column.items()
        ]
        start.append(len(pairs))
        key_start.append(len(passing))
    log_gate_Q = torch.tensor([a for _, a in passing], dtype=torch.float64)
    return Fired(
        cell_P=torch.tensor([cell for cell, _ in pairs], dtype=torch.int64),
        start_N1=torch.tensor(start),
        gate_P=torch.tensor([gate for _, gate in pairs], dtype=torch.float64),
        score_Q=torch.tensor([s for s, _ in passing], dtype=torch.int32),
        key_start_N1=torch.tensor(key_start),
        log_gate_Q=log_gate_Q,
        gate_Q=log_gate_Q.exp(),
    )


def axis_log_gates(score_I: list[float], mean: float, var: float, rule: Rule) -> dict[int, float]:
    """The log gate of each sub-key that passes, in ascending order."""
    normal_I = [(score - mean) / math.sqrt(var + rule.epsilon) for score in score_I]
    limit = min(rule.deviations, max(normal_I) - rule.tie_margin)
    passing = [i for i, normal in enumerate(normal_I) if normal >= limit]
    log_all = math.log(sum(math.exp(score_I[i] - max(score_I)) for i in passing)) + max(score_I)
    return {i: score_I[i] - log_all for i in passing}


def sparse_scores(feature_RN: Tensor, rows: SparseRows) -> Tensor:
    """(S, N) float64"""
    score_SN = rows.intercept_S.double()[:, None].repeat(1, feature_RN.shape[1])
    for index_S, coefficient_S in zip(rows.index_SK.long().T, rows.coefficient_SK.double().T, strict=True):
        score_SN += coefficient_S[:, None] * feature_RN.double()[index_S]
    return score_SN
