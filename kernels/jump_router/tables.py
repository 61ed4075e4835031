"""What `jump_router` takes beside scores or features, and what it gives: the contract of all its implementations."""

# N tokens, H heads, I sub-keys of the rows, J of the columns, S = H * (I + J) scores (rows of all heads, then columns),
# R features, K features a score is a sum of, P pairs that fire, Q scores that pass

from typing import NamedTuple

import torch
from torch import Tensor


class SparseRows(NamedTuple):
    """Scores as sums of few features each; an index with coefficient 0 fills up shorter sums."""

    index_SK: Tensor
    """int32"""
    coefficient_SK: Tensor
    intercept_S: Tensor


class AxisStatistics(NamedTuple):
    """Means and variances of the scores of each head, and the threshold on the log gate of a pair."""

    row_mean_H: Tensor
    row_var_H: Tensor
    column_mean_H: Tensor
    column_var_H: Tensor
    threshold_H: Tensor


class Rule(NamedTuple):
    """Numbers that do not change with the state."""

    num_rows: int
    deviations: float
    """A score passes at so many standard deviations above its head's mean."""
    tie_margin: float
    """Deviations by which a score may miss its head's best and pass like it."""
    epsilon: float
    """Added to variances."""


class Fired(NamedTuple):
    """Pairs in order of token, head, row and column; and, in order of token and score, the scores that pass."""

    cell_P: Tensor
    """int64, row * J + column."""
    start_N1: Tensor
    """int64, where each token's pairs start."""
    gate_P: Tensor
    score_Q: Tensor
    """int32, which of the S."""
    key_start_N1: Tensor
    """int64, where each token's passing scores start."""
    log_gate_Q: Tensor
    gate_Q: Tensor


def compact(weight_SR: Tensor, intercept_S: Tensor) -> SparseRows:
    """The non-zeros of these rows, each row's in ascending order."""
    used_SR = weight_SR != 0
    terms = max(1, int(used_SR.sum(1).max()))
    index_SK = torch.argsort(~used_SR, dim=1, stable=True)[:, :terms]
    return SparseRows(index_SK.to(torch.int32), weight_SR.gather(1, index_SK), intercept_S)
