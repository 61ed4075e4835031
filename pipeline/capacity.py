"""`python -m pipeline.capacity`: how many experts fit into a memory, for inference and for training, and how fast.

Bytes are those that pipeline/models/quantized.py and pipeline/table_arms.py store: an expert has a row of u and one of
v, with their scales and moments, a float32 bias, and one cell of the key grid in the index of cells, 9/8 of a byte.

Speed is a bound, from the bytes of rows that a token moves in a layer, at the bandwidth of random rows of that length.
Each pair reads its rows of u and v once forward and, in training, once backward. A training step then reads and writes
all that is stored of touched rows: values, accumulator, scale and moment. Which rows its tokens touch is as if pairs
were drawn uniformly; real ones are skewed and touch fewer. AdamW reads and writes weights, gradients and both moments
of every row. Beside the bound stands what the kernels reach on this machine's CPU.
"""

import argparse
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from artifacts import show_every_text
from kernels.cells.layout import BLOCK, index_bytes
from pipeline.bandwidth import expert_sum_rate, int4_training_rate, memory, random_row_bandwidth

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
pipeline/table_arms.py makes for a while, are not counted; `sr_update` of int4 with an accumulator makes none."""


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
                raise ValueError(f"--{option}: got {value}, wanted at least 1")
        if self.width % 2:
            raise ValueError(
                f"--width: got {self.width}, wanted an even width, since a byte of int4 holds two values; "
                f"use {self.width + 1}"
            )
        if self.memory_bytes <= self.reserve_bytes:
            raise ValueError(
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
        raise ValueError(f"{option}: got {text!r}, wanted a number and a unit such as 24GB{suffix} or 1.5GiB{suffix}")
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
        raise ValueError(f"{experts} experts fit into a layer, and the smallest key grid has 4; give more --memory")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Of a machine."""

    bandwidth: Mapping[int, float]
    """Bytes a second of random rows, by bytes of a row."""
    rate: Mapping[str, float]
    """Tokens a second that the kernels reach, by name of the storage; empty where it was not measured."""
    source: str
    """Where these are from."""


def measured_speed(request: Request, capacities: Sequence[Capacity]) -> Speed:
    """Of this machine's CPU, in some seconds."""
    under, width, pairs = memory(), request.width, request.pairs
    lengths = {value_bytes(storage, width) for storage in INFERENCE}
    bandwidth = {length: random_row_bandwidth(under, length) for length in sorted(lengths)}
    rate = {s.name: expert_sum_rate(under, s.value_bits, width, pairs) for s in INFERENCE}
    for of in capacities:
        if of.storage is INT4_TRAINING:
            touched = touched_rows(of.grid.experts, pairs * request.batch) / request.batch
            rate[of.storage.name] = int4_training_rate(under, width, pairs, touched)
    threads = f"threads: {torch.get_num_threads()}; other work on the machine lowers it"
    return Speed(bandwidth=bandwidth, rate=rate, source=f"random rows as long as a row's values, here ({threads})")


def given_speed(bandwidth: int, request: Request) -> Speed:
    lengths = {value_bytes(storage, request.width) for storage in INFERENCE}
    source = "as given; random rows reach less of a peak, short ones least"
    return Speed(bandwidth=dict.fromkeys(lengths, float(bandwidth)), rate={}, source=source)


def report(capacities: Sequence[Capacity], request: Request, speed: Speed) -> str:
    """Two Markdown tables and what their columns mean."""
    memory, reserve, layer = (n / 1e9 for n in (request.memory_bytes, request.reserve_bytes, request.layer_bytes))
    layers = f"{request.layers:,} layers" if request.layers > 1 else "1 layer"
    lines = [
        f"{memory:,.2f} GB less {reserve:,.2f} GB for the rest, over {layers} of width {request.width:,}: "
        f"{layer:,.2f} GB a layer.",
        "",
        _table("inference", [of for of in capacities if not of.storage.trains], request, speed),
        "",
        _table("training", [of for of in capacities if of.storage.trains], request, speed),
        "",
        f"KB/token: of table rows that a token moves in one layer, with {request.pairs:,} pairs; in training with",
        f"  {request.batch:,} tokens a step, whose pairs touch rows as if drawn uniformly.",
        f"GB/s: {speed.source}.",
        "tokens/s: the most that this traffic allows one layer, a bound. What the kernels compute on the rows, the",
        "  router's selection, attention, the token states that an update reads and the rest of the model are not in",
        "  it, nor that the pages of tables of many GB are found more slowly.",
    ]
    if speed.rate:
        lines.append(
            "kernels/s: tokens that one layer reaches here by kernels/expert_sum, forward; in training backward too,\n"
            "  and kernels/sr_update. The other ways to train have no kernel of their own."
        )
    return "\n".join(lines)


def _table(title: str, capacities: Sequence[Capacity], request: Request, speed: Speed) -> str:
    titles = "bytes/expert", "fit a layer", "key grid", "experts", "GB, all layers", "KB/token", "GB/s", "tokens/s"
    lines = [[title, *titles, *["kernels/s"] * bool(speed.rate)]]
    for of in capacities:
        bandwidth, rate = speed.bandwidth[value_bytes(of.storage, request.width)], speed.rate.get(of.storage.name)
        lines.append(
            [
                of.storage.name, f"{expert_bytes(of.storage, request.width):,.1f}", f"{of.experts_that_fit:,}",
                f"{of.grid.rows:,} x {of.grid.columns:,}", f"{of.grid.experts:,}",
                f"{request.layers * of.pool_bytes / 1e9:,.2f}", f"{of.token_bytes / 1e3:,.1f}",
                f"{bandwidth / 1e9:,.1f}", f"{bandwidth / of.token_bytes:,.0f}",
                *["" if rate is None else f"{rate:,.0f}"] * bool(speed.rate),
            ]
        )  # fmt: skip
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    header, *rest = lines
    return "\n".join([line(header), rule, *map(line, rest)])


def main(arguments: Sequence[str]) -> int:
    """Prints the two tables; 2 after one sentence for what cannot be planned."""
    show_every_text()
    parser = argparse.ArgumentParser(prog="python -m pipeline.capacity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", required=True, metavar="SIZE", help="of the machine or GPU: 24GB, 80GB, 1.5GiB")
    parser.add_argument("--width", required=True, type=int, help="of an expert's rows, d_model; even")
    parser.add_argument("--layers", type=int, default=1, help="that share the memory (default: 1)")
    parser.add_argument(
        "--reserve", default="1.5GB", metavar="SIZE",
        help="kept for everything else: process, rest of the model, activations (default: 1.5GB)",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=128, help="experts a token reads in a layer (default: 128)")
    parser.add_argument("--batch", type=int, default=16_384, help="tokens a training step (default: 16384)")
    parser.add_argument(
        "--bandwidth", metavar="SIZE/s",
        help="of another machine, such as 3.35TB/s; without it, reading random rows is measured here, for seconds",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that measure (default: torch's)")
    values = parser.parse_args(arguments)
    try:
        request = Request(
            memory_bytes=parse_bytes(values.memory, "--memory"),
            reserve_bytes=parse_bytes(values.reserve, "--reserve"),
            width=values.width,
            layers=values.layers,
            pairs=values.pairs,
            batch=values.batch,
        )
        capacities = [capacity(storage, request) for storage in (*INFERENCE, *TRAINING)]
        given = None if values.bandwidth is None else parse_bytes(values.bandwidth, "--bandwidth", "/s")
        if values.threads < 1:
            raise ValueError(f"--threads: got {values.threads}, wanted at least 1")
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    torch.set_num_threads(values.threads)
    speed = measured_speed(request, capacities) if given is None else given_speed(given, request)
    print(report(capacities, request, speed))  # noqa: T201 - this is the command's output
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
