"""Firings on a key grid with planted truth: siblings that meet only since their sub-key was selected, and some beyond.

On a token each head selects rows and columns, each of them by itself, with the token's own keenness; every expert in a
cell that a head selected fires by its own rate. So experts of one row or column are co-active by construction, and no
other two are but by how keen the token is. A few planted pairs of siblings fire together besides, on tokens that select
their sub-key.
"""

import numpy as np
import torch

ROWS, COLUMNS = 18, 14


def plant_siblings(seed, tokens=40_000, heads=2, planted=6, share=0.3):
    """Tensors of the layout with `cell`, and the planted pairs: half share a row, half a column."""
    rng = np.random.default_rng(seed)
    rate_RC = rng.beta(2.0, 2.0, (ROWS, COLUMNS))
    fires_TRC = np.zeros((tokens, ROWS, COLUMNS), bool)
    some_TR, some_TC = np.zeros((tokens, ROWS), bool), np.zeros((tokens, COLUMNS), bool)
    for _ in range(heads):
        keen_T1 = rng.beta(4.0, 4.0, (tokens, 1)) * 2
        row_TR = rng.random((tokens, ROWS)) < keen_T1 * rng.beta(1.5, 10.0, ROWS)
        column_TC = rng.random((tokens, COLUMNS)) < keen_T1 * rng.beta(1.5, 10.0, COLUMNS)
        reached_TRC = row_TR[:, :, None] & column_TC[:, None]
        fires_TRC |= reached_TRC & (rng.random(reached_TRC.shape, np.float32) < rate_RC)
        some_TR |= reached_TRC.any(2)
        some_TC |= reached_TRC.any(1)
    pairs = set()
    lines = rng.permutation(min(ROWS, COLUMNS))[:planted].tolist()
    for number, line in enumerate(lines):
        by_row = number % 2 == 0
        selected_T = (some_TR if by_row else some_TC)[:, line] & (rng.random(tokens) < share)
        one, other = rng.choice(COLUMNS if by_row else ROWS, 2, replace=False).tolist()
        cells = [(line, one), (line, other)] if by_row else [(one, line), (other, line)]
        for row, column in cells:
            fires_TRC[selected_T, row, column] = True
        pairs.add(tuple(sorted(row * COLUMNS + column for row, column in cells)))
    token_N, expert_N = np.nonzero(fires_TRC.reshape(tokens, -1))
    place_N = np.arange(len(token_N)) - np.searchsorted(token_N, token_N)
    expert_TK = np.full((tokens, place_N.max() + 1), -1)
    expert_TK[token_N, place_N] = expert_N
    tensors = {
        "expert": torch.from_numpy(expert_TK.astype(np.int32)),
        "contribution": torch.ones(expert_TK.shape),
        "token": torch.zeros(tokens, dtype=torch.int64),
        "label": torch.from_numpy(rng.integers(0, 5, tokens)),
        "document": torch.arange(tokens) // 100,
        "stratum": torch.from_numpy(np.repeat(rng.integers(0, 3, tokens // 100), 100)),
        "cell": torch.cartesian_prod(torch.arange(ROWS), torch.arange(COLUMNS)),
    }
    return tensors, pairs
