"""The oracle of `axis_bias`: score by score, in double precision. Never optimised."""

# N tokens, D model width, I sub-keys of the rows, J of the columns, Q scores that pass

import torch
from torch import Tensor


def axis_bias(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, heads: int, row_ID: Tensor, column_JD: Tensor
) -> Tensor:
    """(N, D) float64: for each token the sum of gate * bias row over the sub-keys that pass."""
    tokens, rows = len(key_start_N1) - 1, len(row_ID)
    y_ND = torch.zeros(tokens, row_ID.shape[1], dtype=torch.float64)
    for n in range(tokens):
        for q in range(int(key_start_N1[n]), int(key_start_N1[n + 1])):
            s = int(score_Q[q])
            bias_D = row_ID[s % rows] if s < heads * rows else column_JD[(s - heads * rows) % len(column_JD)]
            y_ND[n] += float(gate_Q[q]) * bias_D.double()
    return y_ND
