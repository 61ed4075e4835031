"""`axis_bias` by stock torch ops: a product of gates, mostly zero, with the rows of each axis."""

# N tokens, D model width, I sub-keys of the rows, J of the columns, X either, Q scores that pass

import torch
from torch import Tensor


def axis_bias(
    score_Q: Tensor, gate_Q: Tensor, key_start_N1: Tensor, heads: int, row_ID: Tensor, column_JD: Tensor
) -> Tensor:
    """(N, D)"""
    tokens, cut = len(key_start_N1) - 1, heads * len(row_ID)
    token_Q = torch.repeat_interleave(torch.arange(tokens, device=score_Q.device), key_start_N1.diff())
    y_ND = row_ID.new_zeros(tokens, row_ID.shape[1])
    for passes_Q, first, table_XD in ((score_Q < cut, 0, row_ID), (score_Q >= cut, cut, column_JD)):
        gate_NX = row_ID.new_zeros(tokens, len(table_XD))
        key = token_Q[passes_Q], (score_Q[passes_Q].long() - first) % len(table_XD)
        gate_NX.index_put_(key, gate_Q[passes_Q].type_as(row_ID), accumulate=True)
        y_ND += gate_NX @ table_XD
    return y_ND
