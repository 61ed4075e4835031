"""`make bench`: kernels against plain PyTorch in one process, on one thread; ratios go into bench.json.

A ratio is printed only when the op's tests pass and both sides agree here. Times are CPU seconds of this process, the
least of several repeats that take turns, so that other work on the machine disturbs both sides alike. Bandwidths count
the bytes of table rows read, beside what copying random rows of that size reaches on this machine.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from kernels import backends
from kernels.expert_sum import expert_sum
from kernels.jump_router import jump_router
from kernels.jump_router import stock as router_stock
from kernels.jump_router.packed import pack
from kernels.jump_router.tables import AxisStatistics, Rule, compact
from kernels.monet_mix import monet_mix
from kernels.packing import pack_int4
from kernels.pairs import pairs_by_row
from kernels.product_key_topk import product_key_topk
from kernels.sr_update import NibbleTable, RowGradients, UpdateCounts, sr_update
from kernels.symbol_table import SymbolLayer, stock
from kernels.symbol_table.tables import SymbolTables, Tier, shapes
from pipeline.models.axis_threshold import axis_deviations
from tests.benchmarks import baselines
from tests.tolerances import relative_rms

# T tokens, K experts a token, D model width, E experts, P = T * K pairs

Op = Callable[[], object]
OUT = Path("bench.json")
T, K, D, E = 512, 128, 512, 262_144


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: our op, its baseline, and others that do the same."""

    op: str
    shape: str
    baseline: str
    seconds: dict[str, float]
    """Of 'ours', 'baseline' and the peers."""
    bytes_read: int = 0
    row_bytes: int = 0
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        return self.seconds["baseline"] / self.seconds["ours"]


def take_turns(ops: dict[str, Op], repeats: int = 7) -> dict[str, float]:
    """The least CPU seconds of each op, measured in turns after one unmeasured run."""
    for op in ops.values():
        op()
    least = dict.fromkeys(ops, float("inf"))
    for _ in range(repeats):
        for name, op in ops.items():
            start = time.process_time()
            op()
            least[name] = min(least[name], time.process_time() - start)
    return least


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_pairs(num_experts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_experts, (T, K), generator=generator), torch.rand(T, K, generator=generator)


def expert_sum_rows(compiled: bool) -> list[Row]:
    x, bias, (expert, gate) = normal(T, D), torch.zeros(E), random_pairs(E)
    start = torch.arange(T + 1) * K
    u, v = (normal(E, D, seed=seed) * D**-0.5 for seed in (1, 2))
    scale = u.abs().amax() / 127
    eight = [(table / scale).round().clamp(-127, 127).to(torch.int8) for table in (u, v)]
    four = [pack_int4((table / (16 * scale)).round().clamp(-7, 7).to(torch.int8)) for table in (u, v)]
    scales = {
        "fp32": (None, None), "int8": (torch.full((E,), float(scale)).half(),) * 2,
        "int4": (torch.full((E,), float(16 * scale)).half(),) * 2,
    }  # fmt: skip
    tables = {"fp32": (u, v), "int8": eight, "int4": four}
    wanted = baselines.gather_and_einsum(x, u, v, expert, gate)
    limits = {"fp32": 1e-5, "int8": 0.05, "int4": 0.5}  # of absmax quantization without a clip, not of the kernel
    peers: dict[str, Op] = {}
    if compiled:
        gather = torch.compile(baselines.gather_and_einsum)
        peers["torch.compile of the baseline"] = lambda: gather(x, u, v, expert, gate)
    rows = []
    for precision, (table_u, table_v) in tables.items():

        def ours(table_u=table_u, table_v=table_v, precision=precision):
            return expert_sum(
                x, table_u, bias, table_v, expert.flatten(), start, gate.flatten(), "gelu", scales[precision]
            )

        agree(ours(), wanted, limits[precision])
        ops: dict[str, Op] = {"ours": ours, "baseline": lambda: baselines.gather_and_einsum(x, u, v, expert, gate)}
        row_bytes = table_u.shape[1] * table_u.element_size()
        rows.append(
            Row(
                op=f"expert_sum_{precision}", shape=f"N={E:,} d={D} k={K} T={T}", baseline="gather + einsum, fp32",
                seconds=take_turns(ops | peers), bytes_read=2 * T * K * row_bytes, row_bytes=row_bytes,
            )
        )  # fmt: skip
    return rows


def topk_row() -> Row:
    heads, keys, k = 8, 512, 16
    row, column = normal(T, heads, keys, seed=3), normal(T, heads, keys, seed=4)
    agree(product_key_topk(row, column, k)[0], baselines.topk_composition(row, column, k)[0], 1e-6)
    ops: dict[str, Op] = {
        "ours": lambda: product_key_topk(row, column, k),
        "baseline": lambda: baselines.topk_composition(row, column, k),
    }
    shape = f"{heads} heads √N={keys} k={k} T={T}"
    return Row(op="product_key_topk", shape=shape, baseline="torch.topk, three times", seconds=take_turns(ops))


def mix_row() -> Row:
    heads, n, m = 8, 128, 16
    arguments = [
        normal(T, n, m, seed=5),
        *(torch.rand(T, heads, n, generator=torch.Generator().manual_seed(s)) for s in (6, 7)),
    ]
    leaves = [a.requires_grad_() for a in arguments]
    dy = normal(T, n, m, seed=8)

    def both(mix: Callable[..., torch.Tensor]) -> Sequence[torch.Tensor]:
        y = mix(*leaves)
        return y, *torch.autograd.grad(y, leaves, dy)

    for got, wanted in zip(both(monet_mix), both(baselines.monet_einsum), strict=True):
        agree(got, wanted, 1e-5)
    ops: dict[str, Op] = {"ours": lambda: both(monet_mix), "baseline": lambda: both(baselines.monet_einsum)}
    shape = f"d={D} n={n} m={m} {heads} heads T={T}, forward + backward"
    return Row(op="monet_mix", shape=shape, baseline="the public einsum", seconds=take_turns(ops))


def router_row() -> Row:
    """Scores of 8 of 64 features against rows over the state; four sub-keys of an axis pass, as in the tiny chain."""
    heads, keys, features, terms = 4, 128, 64, 8
    generator, scores = torch.Generator().manual_seed(10), 2 * heads * keys
    order = torch.rand(scores, features, generator=generator).argsort(1)
    weight = normal(scores, features, seed=11) * (order < terms) * terms**-0.5
    sparse, feature, x = compact(weight, torch.zeros(scores)), normal(features, T, seed=12), normal(D, T, seed=13)
    rows, directions = (normal(count, D, seed=14) * D**-0.5 for count in (scores, features))
    moments = torch.zeros(heads), torch.ones(heads)
    statistics = AxisStatistics(*moments, *moments, torch.full((heads,), -2.8))
    rule = Rule(keys, axis_deviations(4, keys), 0.0, 1e-5)
    got, wanted = (
        jump_router(feature, sparse, statistics, rule),
        router_stock.forward(feature, sparse, statistics, rule),
    )
    agree(got.gate_Q, wanted.gate_Q, 1e-5)
    ops: dict[str, Op] = {
        "ours": lambda: jump_router(directions @ x, sparse, statistics, rule),
        "baseline": lambda: router_stock.forward(rows @ x, None, statistics, rule),
        "dense rows, C++": lambda: jump_router(rows @ x, None, statistics, rule),
    }
    shape = f"{heads} heads √N={keys} d={D} T={T}, {terms} of {features} features"
    return Row(op="jump_router", shape=shape, baseline="stock torch ops, dense rows", seconds=take_turns(ops))


def symbol_row() -> Row:
    """Shares of tiers as the tiny chain has them, a tenth dense and half formulas; a cell holds one expert."""
    generator, cells, coordinates = torch.Generator().manual_seed(6), 65_536, 16
    tier = torch.tensor([Tier.T0] + 5 * [Tier.T1] + 4 * [Tier.T4])[torch.randint(10, (cells,), generator=generator)]
    tables = {
        name: torch.zeros(shape, dtype=dtype)
        for name, (shape, dtype) in shapes(
            d_model=D,
            experts=cells,
            coordinates=coordinates,
            dense=cells // 10,
            gates=0,
            literals=0,
            vocabulary=2,
            splines=0,
        ).items()
    }
    tables |= {
        "cell_start_C1": torch.arange(cells + 1, dtype=torch.int32), "tier_E": tier.to(torch.uint8),
        "code_E": torch.full((cells,), 4, dtype=torch.uint8), "scale_E": torch.ones(cells),
        "index_EK": torch.randint(D, (cells, coordinates), generator=generator).short(),
        "coefficient_EK": normal(cells, coordinates), "dense_u_FD": normal(cells // 10, D) / 20,
        "dense_row_E": torch.randint(cells // 10, (cells,), generator=generator).int(),
        "v_EB": torch.randint(256, (cells, D // 2), generator=generator, dtype=torch.uint8),
        "v_scale_E": torch.full((cells,), 0.01).half(),
    }  # fmt: skip
    made, x, start = SymbolTables(**tables), normal(T, D), torch.arange(T + 1) * K
    cell, gate = torch.randint(cells, (T * K,), generator=generator), torch.rand(T * K, generator=generator)
    tokens, sizes = torch.zeros(1, T, dtype=torch.int64), (0, cells, 1)
    library, packed = backends.cpu_library(), pack(cell, start, gate, sizes)
    layer = None if library is None else SymbolLayer(library, made, 1, None, sizes)

    def baseline() -> torch.Tensor:
        return stock.forward(x, cell, start, gate, tokens, made)

    def ours() -> torch.Tensor:
        return baseline() if layer is None else layer(x, packed, tokens)

    u = torch.randint(-127, 128, (cells, D), generator=generator, dtype=torch.int8)
    scale, bias = torch.full((cells,), 0.001).half(), torch.zeros(cells)
    agree(ours(), baseline(), 1e-5)
    ops: dict[str, Op] = {
        "ours": ours,
        "baseline": baseline,
        "int8 expert_sum": lambda: expert_sum(x, u, bias, u, cell, start, gate, "relu2", (scale, scale)),
    }
    shape = f"N={cells:,} d={D} k={K} T={T}, {coordinates} coordinates"
    return Row(op="symbol_table", shape=shape, baseline="stock torch ops", seconds=take_turns(ops))


def nibble_table(num_rows: int) -> NibbleTable:
    generator = torch.Generator().manual_seed(0)
    planes = (torch.randint(0, 256, (num_rows, D // 2), dtype=torch.uint8, generator=generator) for _ in range(2))
    return NibbleTable(*planes, torch.full((num_rows,), 0.01).half(), torch.zeros(num_rows))


def table_step(table: NibbleTable, x: torch.Tensor, expert: torch.Tensor, dh: torch.Tensor) -> UpdateCounts:
    """From the coefficients that expert_sum's backward pass returns to the updated table."""
    order, rows, start = pairs_by_row(expert.flatten())
    gradients = RowGradients(x, rows, start, order // K, dh.flatten()[order])
    return sr_update(table, gradients, learning_rate=1e-5, key=(0, 0))


def update_row() -> Row:
    million = 2**20
    x, (expert, _), dh = normal(T, D), random_pairs(million), normal(T, K, seed=9)
    table = nibble_table(million)
    beyond = peak_beyond(lambda: table_step(table, x, expert, dh))
    speed_share = seconds_at_equal_rows(65_536, x, dh) / seconds_at_equal_rows(million, x, dh)
    seconds = dense_and_ours(table, x, expert, dh)
    sparse = baselines.DenseTable(million, D, sparse=True)
    seconds["SparseAdam"] = take_turns({"": lambda: sparse.step(x, expert, dh)}, repeats=3)[""]
    unique = len(expert.unique())
    return Row(
        op="update_1m", shape=f"N={million:,} d={D} k={K} T={T}, {unique:,} rows", baseline="autograd + Adam, fp32",
        seconds=seconds, bytes_read=unique * D * 2, row_bytes=D // 2,
        notes={"update_1m_peak_beyond_table_mb": beyond / 1e6, "update_1m_speed_share_of_65k": speed_share},
    )  # fmt: skip


def dense_and_ours(table: NibbleTable, x: torch.Tensor, expert: torch.Tensor, dh: torch.Tensor) -> dict[str, float]:
    """The dense table's 8 GB are given back when this returns."""
    dense = baselines.DenseTable(len(table.weight_EB), D)
    ops: dict[str, Op] = {
        "ours": lambda: table_step(table, x, expert, dh),
        "baseline": lambda: dense.step(x, expert, dh),
    }
    return take_turns(ops, repeats=3)


def seconds_at_equal_rows(num_experts: int, x: torch.Tensor, dh: torch.Tensor) -> float:
    """Gather (the int4 layer's forward pass) and update where 32,768 rows are touched twice each, wherever they lie."""
    generator = torch.Generator().manual_seed(1)
    touched = torch.randperm(num_experts, generator=generator)[: T * K // 2]
    expert = touched.repeat(2)[torch.randperm(T * K, generator=generator)].view(T, K)
    table, bias, start = nibble_table(num_experts), torch.zeros(num_experts), torch.arange(T + 1) * K

    def gather_and_update() -> None:
        w, s = table.weight_EB, table.scale_E
        expert_sum(x, w, bias, w, expert.flatten(), start, dh.flatten(), "gelu", (s, s))
        table_step(table, x, expert, dh)

    return take_turns({"": gather_and_update}, repeats=5)[""]


def peak_beyond(op: Op) -> int:
    """Bytes by which resident memory rose above what it was, at its highest (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    op()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def gather_bandwidth(row_bytes: int) -> float:
    """Bytes a second of reading random rows out of a table of 512 MB into a buffer that stays in the cache."""
    table = torch.zeros(2**29 // row_bytes, row_bytes // 8, dtype=torch.int64)
    rows = torch.randint(len(table), (2**27 // row_bytes,), generator=torch.Generator().manual_seed(2))
    pieces = rows.split(2**17 // row_bytes)
    buffer = torch.empty(2**17 // row_bytes, row_bytes // 8, dtype=torch.int64)

    def gather() -> None:
        for piece in pieces:
            torch.index_select(table, 0, piece, out=buffer)

    return 2**27 / take_turns({"": gather}, repeats=5)[""]


def agree(got: torch.Tensor, wanted: torch.Tensor, limit: float) -> None:
    error = relative_rms(got.detach(), wanted.detach())
    if not error <= limit:
        raise SystemExit(f"no ratio is printed: outputs differ by {error:.2g} of their size, above {limit:.2g}")


def tests_pass(op: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", f"tests/kernels/test_{op}.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        Console().print(f"[red]{op}: its tests fail, so no ratio is printed[/red]\n{done.stdout[-2000:]}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stock", action="store_true", help="measure what runs without the C++ kernels; print only")
    without = parser.parse_args().stock
    torch.set_num_threads(1)
    console = Console(width=160)
    compiled = not without and built(console)
    if without:
        backends.cpu_library = lambda: None
    library = backends.cpu_library()
    console.print(
        f"torch {torch.__version__}, one thread; C++ kernels: {library.instruction_set if library else 'none'}"
    )
    measured: dict[str, Callable[[], list[Row]]] = {
        "expert_sum": lambda: expert_sum_rows(compiled),
        "product_key_topk": lambda: [topk_row()],
        "monet_mix": lambda: [mix_row()],
        "sr_update": lambda: [update_row()],
        "jump_router": lambda: [router_row()],
        "symbol_table": lambda: [symbol_row()],
    }
    passing = [op for op in measured if tests_pass(op)]
    rows = [row for op in passing for row in measured[op]()]
    numbers = show(rows, console)
    if not without:
        OUT.write_text(json.dumps(numbers, indent=1) + "\n")
    if len(passing) < len(measured):
        raise SystemExit(1)


def built(console: Console) -> bool:
    """Whether there is a compiler, which torch.compile needs too; builds the C++ kernels with it."""
    try:
        backends.build_cpu_library()
    except RuntimeError as error:
        console.print(f"{error}; stock torch ops are measured")
        return False
    return True


def show(rows: list[Row], console: Console) -> dict[str, float]:
    """Prints the table, and returns the numbers of bench.json."""
    table = Table("op", "shape", "baseline", "ms", "ours, ms", "speed-up", "GB/s of rows", "gather GB/s", "peers, ms")
    numbers: dict[str, float] = {}
    for row in rows:
        peers = {name: s for name, s in row.seconds.items() if name not in ("ours", "baseline")}
        rate = row.bytes_read / row.seconds["ours"] / 1e9
        machine = gather_bandwidth(row.row_bytes) / 1e9 if row.row_bytes else 0.0
        table.add_row(
            row.op, row.shape, row.baseline, f"{row.seconds['baseline'] * 1e3:.1f}", f"{row.seconds['ours'] * 1e3:.1f}",
            f"{row.speedup:.1f}x", f"{rate:.1f}" if rate else "", f"{machine:.1f}" if machine else "",
            ", ".join(f"{name} {s * 1e3:.1f}" for name, s in peers.items()),
        )  # fmt: skip
        numbers[f"{row.op}_speedup"] = row.speedup
        if row.row_bytes:
            numbers[f"{row.op}_gbytes_per_second"] = rate
            numbers[f"{row.op}_machine_gather_gbytes_per_second"] = machine
        numbers |= row.notes
    console.print(table)
    for name, value in numbers.items():
        if not name.endswith("_speedup"):
            console.print(f"{name}: {value:.2f}")
    return numbers


if __name__ == "__main__":
    main()
