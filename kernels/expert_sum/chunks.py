"""Table rows of bfloat16, int8 and int4 by stock torch ops, made float a chunk of tokens at a time.

A table with fewer rows than there are pairs, and small enough for a cache, is made float as a whole, for one call: each
row is decoded once then, and not for each of its pairs.
"""

# T tokens, D model width, E experts, B stored values of a row, P pairs (a token and one of its experts), C of a chunk

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.expert_sum import bags
from kernels.packing import unpack_int4
from kernels.pairs import tokens_of_pairs

PAIRS_A_CHUNK = 512
"""Their rows stay in a core's second cache while they are decoded and used (1 MB at width 512)."""

SMALL_TABLE = 2**22
"""Stored values of a table that may be made float as a whole: 16 MB."""


def dequantized(rows_CB: Tensor) -> Tensor:
    """(C, D) float32 rows, before their scales."""
    return (unpack_int4(rows_CB) if rows_CB.dtype == torch.uint8 else rows_CB).float()


def row_dots(x_TD: Tensor, table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor) -> Tensor:
    """(P) float32: the dot product of each pair's token and (scaled) table row."""
    if _is_small(table_EB, expert_P):
        out_P = bags.row_dots(x_TD, dequantized(table_EB), expert_P, start_T1, tokens_of_pairs(start_T1))
    else:
        out_P = torch.empty(len(expert_P))
        for tokens, pairs in _chunks(start_T1):
            rows_CD = dequantized(table_EB.index_select(0, expert_P[pairs]))
            start_C1 = start_T1[tokens.start : tokens.stop + 1] - pairs.start
            local_C = torch.arange(len(rows_CD))
            out_P[pairs] = bags.row_dots(x_TD[tokens], rows_CD, local_C, start_C1, tokens_of_pairs(start_C1))
    return out_P if scale_E is None else out_P * scale_E[expert_P].float()


def row_sums(
    table_EB: Tensor, scale_E: Tensor | None, expert_P: Tensor, start_T1: Tensor, weight_P: Tensor, width: int
) -> Tensor:
    """(T, D) float32: for each token the sum of its pairs' (scaled) table rows by their weights."""
    scaled_P = weight_P if scale_E is None else weight_P * scale_E[expert_P].float()
    if _is_small(table_EB, expert_P):
        return bags.bag_sum(dequantized(table_EB), expert_P, start_T1, scaled_P)
    out_TD = torch.empty(len(start_T1) - 1, width)
    for tokens, pairs in _chunks(start_T1):
        rows_CD = dequantized(table_EB.index_select(0, expert_P[pairs]))
        start_C1 = start_T1[tokens.start : tokens.stop + 1] - pairs.start
        out_TD[tokens] = bags.bag_sum(rows_CD, torch.arange(len(rows_CD)), start_C1, scaled_P[pairs])
    return out_TD


def _is_small(table_EB: Tensor, expert_P: Tensor) -> bool:
    return len(table_EB) <= len(expert_P) and table_EB.numel() <= SMALL_TABLE


def _chunks(start_T1: Tensor) -> Iterator[tuple[slice, slice]]:
    """Runs of whole tokens of about PAIRS_A_CHUNK pairs, as slices of the tokens and of the pairs."""
    starts = start_T1.tolist()
    first = 0
    for t in range(1, len(starts)):
        if starts[t] - starts[first] >= PAIRS_A_CHUNK or t == len(starts) - 1:
            yield slice(first, t), slice(starts[first], starts[t])
            first = t
