"""What this machine's CPU reaches on tables that fit into no cache: reading random rows, and the kernels on them.

Rows are read by stock embedding bags, one multiplication and one addition for 4 bytes, so that memory is measured.
"""

# E rows of a table, D model width, B stored values of a row, T bags or tokens, P rows of theirs, R rows that an update
# touches

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from kernels.expert_sum import bags, expert_sum, expert_sum_backward, expert_sum_forward
from kernels.pairs import pairs_by_row
from kernels.sr_update import NibbleTable, RowGradients, sr_update

CACHES_A_TABLE = 20
"""Last-level caches that the tables would fill, so that about one row in 20 is found there."""

MOST_BYTES = 2**30

ASSUMED_CACHE_BYTES = 2**25
"""Where the system does not tell."""

BYTES_A_REPEAT, REPEATS = 2**26, 7

DTYPES = {32: torch.float32, 16: torch.bfloat16, 8: torch.int8, 4: torch.uint8}
"""Of tables that `expert_sum` reads, by bits a value."""


def memory() -> Tensor:
    """uint8, to lie under tables of any type: 0.5 as bfloat16, about that as float32, and nibbles that int4 has."""
    size = min(CACHES_A_TABLE * last_level_cache_bytes(), MOST_BYTES)
    return torch.full((size // 2,), 0.5, dtype=torch.bfloat16).view(torch.uint8)


def random_row_bandwidth(memory: Tensor, row_bytes: int) -> float:
    """Bytes a second of reading random rows, by torch's threads; of rows a few bytes longer if no floats fill these."""
    table_EB = _rows(memory, torch.float32, 4 * -(-row_bytes // 4))
    start_T1, weight_P, draw = _pairs(table_EB, 128)
    seconds = _least_seconds(lambda row_P: bags.bag_sum(table_EB, row_P, start_T1, weight_P), draw)
    return len(weight_P) * table_EB[0].nbytes / seconds


def expert_sum_rate(memory: Tensor, value_bits: int, width: int, pairs: int) -> float:
    """Tokens a second of `expert_sum`'s forward pass, by torch's threads, with so many random experts a token."""
    half = len(memory) // 2
    u_EB, v_EB = (_rows(part, DTYPES[value_bits], width * value_bits // 8) for part in (memory[:half], memory[half:]))
    scale_E = torch.ones(len(u_EB), dtype=torch.float16) if value_bits <= 8 else None
    start_T1, gate_P, draw = _pairs(u_EB, pairs)
    x_TD, bias_E = torch.ones(len(start_T1) - 1, width), torch.zeros(len(u_EB))
    seconds = _least_seconds(
        lambda expert_P: expert_sum(x_TD, u_EB, bias_E, v_EB, expert_P, start_T1, gate_P, "gelu", (scale_E, scale_E)),
        draw,
    )
    return len(x_TD) / seconds


def int4_training_rate(memory: Tensor, width: int, pairs: int, touched: float) -> float:
    """Tokens a second of both passes of `expert_sum` and `sr_update`, by torch's threads, on int4 with an accumulator.

    `touched` is how many rows of either table a step updates for each of its tokens. Writes into the memory.
    """
    u, v = (_nibble_table(part, width) for part in memory.view(2, -1))
    start_T1, gate_P, draw = _pairs(u.weight_EB, pairs)
    tokens = len(start_T1) - 1
    x_TD, bias_E = torch.ones(tokens, width), torch.zeros(len(u.scale_E))

    def both_passes(expert_P: Tensor) -> None:
        rows = expert_P, start_T1, gate_P
        u_and_scale, v_and_scale = (u.weight_EB, u.scale_E), (v.weight_EB, v.scale_E)
        y_TD, pre_P = expert_sum_forward(x_TD, *u_and_scale, bias_E, *v_and_scale, *rows, "gelu")
        expert_sum_backward(y_TD, *u_and_scale, *v_and_scale, *rows, pre_P, "gelu")
        pairs_by_row(expert_P)

    # Some fifty times slower a row than reading it (AVX2, 2026-11): fewer rows do. Each has one pair.
    count = max(1, min(len(u.scale_E), len(gate_P)) // 8)
    generator = torch.Generator().manual_seed(1)
    start_R1, token_R, weight_R = torch.arange(count + 1), torch.arange(count) % tokens, torch.ones(count)

    def update(row_R: Tensor) -> None:
        sr_update(u, RowGradients(x_TD, row_R, start_R1, token_R, weight_R), learning_rate=1e-3, key=(0, 0))

    passes_seconds = _least_seconds(both_passes, draw) / tokens
    row_seconds = _least_seconds(update, lambda: _distinct_rows(len(u.scale_E), count, generator)) / count
    return 1 / (passes_seconds + 2 * touched * row_seconds)


def last_level_cache_bytes(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Of the first core, as Linux tells it."""
    kib = [int(file.read_text().strip().removesuffix("K")) for file in folder.glob("index*/size")]
    return max(kib) * 2**10 if kib else ASSUMED_CACHE_BYTES


def _rows(memory: Tensor, dtype: torch.dtype, row_bytes: int) -> Tensor:
    """(E, B) as many whole rows as fit."""
    return memory[: len(memory) // row_bytes * row_bytes].view(dtype).view(-1, row_bytes // dtype.itemsize)


def _nibble_table(memory: Tensor, width: int) -> NibbleTable:
    weight_EB, accumulator_EB = (_rows(part, torch.uint8, width // 2) for part in memory.view(2, -1))
    scale_E = torch.ones(len(weight_EB), dtype=torch.float16)
    return NibbleTable(weight_EB, accumulator_EB, scale_E, torch.zeros(len(weight_EB)))


def _pairs(table_EB: Tensor, pairs: int) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """(T + 1) starts and (P) weights of some BYTES_A_REPEAT of rows, and what draws the rows."""
    tokens = max(1, BYTES_A_REPEAT // (pairs * table_EB[0].nbytes))
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return torch.randint(len(table_EB), (tokens * pairs,), generator=generator)

    return torch.arange(tokens + 1) * pairs, torch.ones(tokens * pairs), draw


def _distinct_rows(num_rows: int, count: int, generator: torch.Generator) -> Tensor:
    """(R) so many random rows, ascending."""
    return torch.randperm(num_rows, generator=generator)[:count].sort().values


def _least_seconds(read: Callable[[Tensor], object], draw: Callable[[], Tensor]) -> float:
    """Of a few repeats, each with other rows: those of the repeat before may still lie in a cache."""
    least = float("inf")
    for _ in range(REPEATS):
        row_P = draw()
        start = time.perf_counter()
        read(row_P)
        least = min(least, time.perf_counter() - start)
    return least
