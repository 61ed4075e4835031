"""Pairs of a token and what it reaches, lying one after the other: where each one's begin, and whose they are."""

# T tokens, P pairs, R rows of a table, X runs, or what a token can reach

import numpy as np
import torch
from torch import Tensor


def starts(count_X: Tensor) -> Tensor:
    """(X + 1) starts of consecutive runs of these lengths."""
    return torch.cat([count_X.new_zeros(1), count_X.cumsum(0)])


def tokens_of_pairs(start_T1: Tensor, num_pairs: int | None = None) -> Tensor:
    """(T + 1) starts of each token's pairs to the (P) token of each pair; torch.compile needs to be told P."""
    tokens = torch.arange(len(start_T1) - 1, device=start_T1.device)
    return torch.repeat_interleave(tokens, start_T1.diff(), output_size=num_pairs)


def reached(is_reached_TX: Tensor) -> tuple[Tensor, Tensor]:
    """(P) token and place in its row wherever it is true, in their order."""
    if is_reached_TX.device.type != "cpu":
        token_P, place_P = torch.nonzero(is_reached_TX, as_tuple=True)
        return token_P, place_P
    # torch.nonzero takes ten times as long as numpy's of a flat row of bool.
    flat_P = np.flatnonzero(is_reached_TX.numpy())
    token_P, place_P = np.divmod(flat_P, is_reached_TX.shape[1])
    return torch.from_numpy(token_P), torch.from_numpy(place_P)


def pairs_by_row(row_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P) order of the pairs by their table row, (R) the rows that occur, ascending, (R + 1) where each one's start."""
    sorted_P, order_P = torch.sort(row_P, stable=True)
    row_R, counts_R = torch.unique_consecutive(sorted_P, return_counts=True)
    start_R1 = torch.zeros(len(row_R) + 1, dtype=torch.int64, device=row_P.device)
    torch.cumsum(counts_R, 0, out=start_R1[1:])
    return order_P, row_R, start_R1
