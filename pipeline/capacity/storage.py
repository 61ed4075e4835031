"""Bytes that experts take, for inference and for training, and how many fit into a memory.

Bytes are those that pipeline/models/tables and pipeline/studies/row_rule_tables.py store: an expert has a row of u
and one of v, with their scales and moments, a float32 bias, and one cell of the key grid in the index of cells, 9/8
of a byte.
"""

import math
import re
from dataclasses import dataclass

from kernels.cells.layout import BLOCK, index_bytes
from kernels.errors import Mistake

CELL_BYTES = 1 + 4 / BLOCK
"""Of the index of cells, in a large pool."""

MOST_EXPERTS = 2**30
"""What PeerSpec allows."""

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """What is stored of a row of u or v, and of an expert's bias."""

    name: str
    value_bits: int
    """A value, as the forward pass reads it."""
    scale_bytes: int = 0
    """A row."""
    learning_bits: int = 0
    """A value, that only the update reads: the accumulator, or a gradient and two moments."""
    moment_bytes: int = 0
    """A row."""
    bias_bytes: int = 4
    dense: bool = False
    """Whether a training step updates every row, not only the touched ones."""

    @property
    def trains(self) -> bool:
        return self.bias_bytes > 4


INFERENCE = (
    Storage(name="float32", value_bits=32),
    Storage(name="bfloat16", value_bits=16),
    Storage(name="int8", value_bits=8, scale_bytes=2),
    Storage(name="int4", value_bits=4, scale_bytes=2),
)
INT4_TRAINING = Storage(
    name="int4 and accumulator", value_bits=4, scale_bytes=2, learning_bits=4, moment_bytes=4, bias_bytes=16
)
TRAINING = (
    Storage(name="float32, AdamW", value_bits=32, learning_bits=96, bias_bytes=16, dense=True),
    Storage(name="float32, row rule", value_bits=32, moment_bytes=4, bias_bytes=16),
    Storage(name="bfloat16, row rule", value_bits=16, moment_bytes=4, bias_bytes=16),
    Storage(name="int8, row rule", value_bits=8, scale_bytes=2, moment_bytes=4, bias_bytes=16),
    INT4_TRAINING,
)
"""A bias has its gradient and two moments of AdamW in all of them. The float32 gradients of touched rows, which
pipeline/studies/row_rule_tables.py makes for a while, are not counted; `sr_update` of int4 with an accumulator makes
none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to plan for. ValueError for what cannot be planned."""

    memory_bytes: int
    reserve_bytes: int
    width: int
    layers: int = 1
    pairs: int = 128
    batch: int = 16_384

    def __post_init__(self) -> None:
        for option in ("width", "layers", "pairs", "batch"):
            if (value := getattr(self, option)) < 1:
                raise Mistake(f"--{option}: got {value}, wanted at least 1")
        if self.width % 2:
            raise Mistake(
                f"--width: got {self.width}, wanted an even width, since a byte of int4 holds two values; "
                f"use {self.width + 1}"
            )
        if self.memory_bytes <= self.reserve_bytes:
            raise Mistake(
                f"--memory: got {self.memory_bytes / 1e9:.4g} GB, wanted more than the {self.reserve_bytes / 1e9:.4g} "
                "GB kept for the rest; give more, or a smaller --reserve"
            )

    @property
    def layer_bytes(self) -> int:
        return (self.memory_bytes - self.reserve_bytes) // self.layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    rows: int
    columns: int

    @property
    def experts(self) -> int:
        """One in each cell."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """Of one layer."""

    storage: Storage
    experts_that_fit: int
    grid: Grid
    pool_bytes: int
    """Of the grid's experts."""
    token_bytes: float
    """Of their rows, that a token moves."""


def parse_bytes(text: str, option: str, suffix: str = "") -> int:
    """Bytes of a size such as 24GB (10^9) or 1.5GiB (2^30). ValueError names the option."""
    found = re.fullmatch(rf"(\d+\.?\d*|\.\d+) *([A-Z]+){suffix.upper()}", text.strip().upper())
    if found is None or found[2] not in UNITS:
        raise Mistake(f"{option}: got {text!r}, wanted a number and a unit such as 24GB{suffix} or 1.5GiB{suffix}")
    return round(float(found[1]) * UNITS[found[2]])


def capacity(storage: Storage, request: Request) -> Capacity:
    """What fits into a layer. ValueError if not even the smallest key grid does."""
    fit = experts_that_fit(storage, request.width, request.layer_bytes)
    grid = largest_grid(fit)
    return Capacity(
        storage=storage,
        experts_that_fit=fit,
        grid=grid,
        pool_bytes=pool_bytes(storage, request.width, grid.experts),
        token_bytes=token_bytes(storage, grid.experts, request),
    )


def value_bytes(storage: Storage, width: int) -> int:
    """Of a row's values, the length at which it is read."""
    assert width * storage.value_bits % 8 == 0
    return width * storage.value_bits // 8


def stored_bytes(storage: Storage, width: int) -> int:
    """Of a row of u or v, with all that learns it."""
    learning_bytes = width * storage.learning_bits // 8 + storage.moment_bytes
    return value_bytes(storage, width) + storage.scale_bytes + learning_bytes


def neuron_bytes(storage: Storage, width: int) -> int:
    """Of an expert without the index of cells: its two rows and its bias."""
    return 2 * stored_bytes(storage, width) + storage.bias_bytes


def pool_bytes(storage: Storage, width: int, experts: int) -> int:
    """Of a layer's experts, one a cell, with the index of cells."""
    return experts * neuron_bytes(storage, width) + index_bytes(experts)


def expert_bytes(storage: Storage, width: int) -> float:
    """Of an expert in a large pool: with the cell that it has to itself."""
    return neuron_bytes(storage, width) + CELL_BYTES


def experts_that_fit(storage: Storage, width: int, layer_bytes: int) -> int:
    neuron = neuron_bytes(storage, width)
    blocks, left = divmod(max(0, layer_bytes - index_bytes(0)), BLOCK * neuron + index_bytes(BLOCK) - index_bytes(0))
    return BLOCK * blocks + min(BLOCK - 1, left // (neuron + 1))  # of a block that is not full, a byte a cell


def largest_grid(experts: int) -> Grid:
    """The n x n or n x 2n grid of most cells, for at most so many experts. ValueError below the smallest, 2 x 2."""
    experts = min(experts, MOST_EXPERTS)
    if experts < 4:
        raise Mistake(f"{experts} experts fit into a layer, and the smallest key grid has 4; give more --memory")
    square, wide = math.isqrt(experts), math.isqrt(experts // 2)
    return max(Grid(rows=square, columns=square), Grid(rows=wide, columns=2 * wide), key=lambda grid: grid.experts)


def touched_rows(experts: int, pairs: int) -> float:
    """Different experts among so many pairs, each drawn uniformly; the expected number."""
    return -experts * math.expm1(pairs * math.log1p(-1 / experts))


def token_bytes(storage: Storage, experts: int, request: Request) -> float:
    """Of table rows that a token moves in a layer (see above)."""
    read = 2 * request.pairs * (value_bytes(storage, request.width) + storage.scale_bytes)
    if not storage.trains:
        return read
    rows = experts if storage.dense else touched_rows(experts, request.pairs * request.batch)
    read_and_written = 2 * 2 * stored_bytes(storage, request.width)
    return 2 * read + rows / request.batch * read_and_written
