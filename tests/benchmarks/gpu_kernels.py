"""Kernels on one GPU against plain PyTorch, its compilation and a device copy: python -m tests.benchmarks.gpu_kernels

Bandwidth counts the bytes of table rows that the op needs; the copy's counts what it reads and writes. Milliseconds are
medians. A line is printed only if both sides agree. With --device cpu and small sizes the program itself can be tried.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table

from kernels.expert_sum import expert_sum, expert_sum_backward, expert_sum_forward
from kernels.monet_mix import monet_mix
from kernels.packing import pack_int4, unpack_int4
from kernels.pairs import pairs_by_row
from kernels.product_key_topk import product_key_topk
from kernels.sr_update import NibbleTable, RowGradients, sr_update
from tests.benchmarks import baselines
from tests.tolerances import relative_rms

# T tokens, K experts a token, D model width, E experts, P = T * K pairs

HEADS, PER_HEAD = 8, 16
K = HEADS * PER_HEAD


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    device: torch.device
    experts: int
    width: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    op: str
    ours_ms: float
    plain_ms: float
    compiled_ms: float | None = None
    bytes_read: int = 0


def milliseconds(op: Callable[[], object], device: torch.device, repeats: int = 15) -> float:
    """The median of some runs after three that warm up."""
    times = []
    for run in range(3 + repeats):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            op()
            end.record()
            torch.cuda.synchronize()
            taken = begin.elapsed_time(end)
        else:
            start = time.perf_counter()
            op()
            taken = (time.perf_counter() - start) * 1e3
        if run >= 3:
            times.append(taken)
    return statistics.median(times)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy of 4 GB (64 MB on a CPU) reads and writes."""
    source = torch.ones(2**30 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device) * 1e3


def generator(sizes: Sizes, seed: int) -> torch.Generator:
    return torch.Generator(sizes.device).manual_seed(seed)


def experts_of_tokens(sizes: Sizes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T, K) experts and gates, and the (T + 1) starts of the tokens' pairs."""
    shape, g = (sizes.tokens, K), generator(sizes, 0)
    expert = torch.randint(sizes.experts, shape, generator=g, device=sizes.device)
    gate = torch.rand(shape, generator=g, device=sizes.device)
    return expert, gate, torch.arange(sizes.tokens + 1, device=sizes.device) * K


def tables(sizes: Sizes, precision: str) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...] | tuple[None, None]]:
    """u and v as they are stored, and their scales."""
    g, scale = generator(sizes, 1), torch.full((sizes.experts,), 0.01, device=sizes.device).half()
    if precision == "bf16":
        values = [
            torch.randn(sizes.experts, sizes.width, generator=g, device=sizes.device, dtype=torch.bfloat16).mul_(0.03)
            for _ in range(2)
        ]
        return values, (None, None)
    top = 127 if precision == "int8" else 7
    values = [
        torch.randint(-top, top + 1, (sizes.experts, sizes.width), generator=g, device=sizes.device, dtype=torch.int8)
        for _ in range(2)
    ]
    return (values if precision == "int8" else [pack_int4(v) for v in values]), (scale, scale)


def forward_line(sizes: Sizes, precision: str) -> Line:
    expert, gate, start = experts_of_tokens(sizes)
    (u, v), scales = tables(sizes, precision)
    bias = torch.zeros(sizes.experts, device=sizes.device)
    x = torch.randn(sizes.tokens, sizes.width, generator=generator(sizes, 2), device=sizes.device).bfloat16()

    def rows(table: torch.Tensor, scale: torch.Tensor | None, expert: torch.Tensor) -> torch.Tensor:
        chosen = torch.nn.functional.embedding(expert, table)
        chosen = unpack_int4(chosen) if table.dtype == torch.uint8 else chosen
        return chosen if scale is None else chosen.bfloat16() * scale[expert].bfloat16()[..., None]

    def plain() -> torch.Tensor:
        hidden = torch.einsum("td,tkd->tk", x, rows(u, scales[0], expert))
        weight = torch.nn.functional.gelu(hidden) * gate.bfloat16()
        return torch.einsum("tk,tkd->td", weight, rows(v, scales[1], expert))

    def ours() -> torch.Tensor:
        return expert_sum(x, u, bias, v, expert.flatten(), start, gate.flatten(), "gelu", scales)  # type: ignore[arg-type]

    agree(ours(), plain(), 0.03)  # bfloat16 products and sums on one side
    compiled = torch.compile(plain)
    return Line(
        op=f"expert_sum forward, {precision}",
        ours_ms=milliseconds(ours, sizes.device),
        plain_ms=milliseconds(plain, sizes.device),
        compiled_ms=milliseconds(compiled, sizes.device) if sizes.device.type == "cuda" else None,
        bytes_read=2 * sizes.tokens * K * u.shape[1] * u.element_size(),
    )


def step_line(sizes: Sizes) -> Line:
    """Backward pass and update of both int4 tables, against autograd and fused Adam on float32 tables of their size."""
    expert, gate, start = experts_of_tokens(sizes)
    (u, v), _ = tables(sizes, "int4")
    scale = torch.full((sizes.experts,), 0.01, device=sizes.device).half()
    state = [
        NibbleTable(t, torch.zeros_like(t), scale.clone(), torch.zeros(sizes.experts, device=sizes.device))
        for t in (u, v)
    ]
    bias = torch.zeros(sizes.experts, device=sizes.device)
    x, dy = (torch.randn(sizes.tokens, sizes.width, generator=generator(sizes, s), device=sizes.device) for s in (2, 3))
    pairs = expert.flatten(), start, gate.flatten()
    _, pre = expert_sum_forward(x, u, scale, bias, v, scale, *pairs, "gelu")

    def ours() -> None:
        _, _, du, dv = expert_sum_backward(dy, u, scale, v, scale, *pairs, pre, "gelu")
        order, rows, starts = pairs_by_row(pairs[0])
        for table, source, weight in zip(state, (x, dy), (du, dv), strict=True):
            gradients = RowGradients(source, rows, starts, order // K, weight[order])
            sr_update(table, gradients, learning_rate=1e-5, key=(0, 0))

    floats = [torch.zeros(sizes.experts, sizes.width, device=sizes.device, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam(floats, fused=True)

    def plain() -> None:
        optimizer.zero_grad(set_to_none=True)
        baselines.gather_and_einsum(x, floats[0], floats[1], expert, gate).backward(dy)
        optimizer.step()

    unique = len(expert.unique())
    read = 2 * sizes.tokens * K * sizes.width // 2 + 4 * unique * sizes.width
    return Line(
        op=f"backward + update, int4, {unique:,} rows",
        ours_ms=milliseconds(ours, sizes.device),
        plain_ms=milliseconds(plain, sizes.device, repeats=5),
        bytes_read=read,
    )


def selection_line(sizes: Sizes) -> Line:
    keys = round(sizes.experts**0.5)
    row, column = (
        torch.randn(sizes.tokens, HEADS, keys, generator=generator(sizes, s), device=sizes.device) for s in (4, 5)
    )
    agree(product_key_topk(row, column, PER_HEAD)[0], baselines.topk_composition(row, column, PER_HEAD)[0], 1e-6)
    return Line(
        op=f"product_key_topk, {HEADS} heads √N={keys} k={PER_HEAD}",
        ours_ms=milliseconds(lambda: product_key_topk(row, column, PER_HEAD), sizes.device),
        plain_ms=milliseconds(lambda: baselines.topk_composition(row, column, PER_HEAD), sizes.device),
        compiled_ms=(
            milliseconds(torch.compile(lambda: baselines.topk_composition(row, column, PER_HEAD)), sizes.device)
            if sizes.device.type == "cuda"
            else None
        ),
    )


def mix_line(sizes: Sizes) -> Line:
    n, m = 128, 16
    g = generator(sizes, 6)
    leaves = [
        torch.rand(sizes.tokens, *shape, generator=g, device=sizes.device).requires_grad_()
        for shape in ((n, m), (HEADS, n), (HEADS, n))
    ]

    def both(mix: Callable[..., torch.Tensor]) -> Sequence[torch.Tensor]:
        y = mix(*leaves)
        return y, *torch.autograd.grad(y, leaves, torch.ones_like(y))

    for got, wanted in zip(both(monet_mix), both(baselines.monet_einsum), strict=True):
        agree(got, wanted, 1e-4)
    return Line(
        op=f"monet_mix forward + backward, n={n} m={m} {HEADS} heads",
        ours_ms=milliseconds(lambda: both(monet_mix), sizes.device),
        plain_ms=milliseconds(lambda: both(baselines.monet_einsum), sizes.device),
    )


def agree(got: torch.Tensor, wanted: torch.Tensor, limit: float) -> None:
    error = relative_rms(got.detach(), wanted.detach())
    if not error <= limit:
        raise SystemExit(f"no ratio is printed: outputs differ by {error:.2g} of their size, above {limit:.2g}")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--experts", type=int, default=2**20, help="rows of a table, a square (default: %(default)s)")
    parser.add_argument("--width", type=int, default=1024, help="columns of a table (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens a call (default: %(default)s)")
    chosen = parser.parse_args(words)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is there; this benchmark is for one, `make bench` is for CPUs")
    sizes = Sizes(device=torch.device(chosen.device), experts=chosen.experts, width=chosen.width, tokens=chosen.tokens)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    copy = copy_bandwidth(sizes.device)
    console = Console(width=140)
    console.print(f"{name}, torch {torch.__version__}: a device copy moves {copy / 1e9:,.0f} GB/s")
    shape = f"N={sizes.experts:,} d={sizes.width} k={K} T={sizes.tokens:,}"
    table = Table(
        f"op ({shape})", "ours, ms", "plain, ms", "compiled, ms", "speed-up", "GB/s of rows", "of copy", "tokens/s"
    )
    measured = [
        *(lambda p=p: forward_line(sizes, p) for p in ("bf16", "int8", "int4")),
        lambda: step_line(sizes),
        lambda: selection_line(sizes),
        lambda: mix_line(sizes),
    ]
    for measure in measured:
        line = measure()
        rate = line.bytes_read / line.ours_ms * 1e3
        table.add_row(
            line.op, f"{line.ours_ms:.2f}", f"{line.plain_ms:.2f}",
            f"{line.compiled_ms:.2f}" if line.compiled_ms else "", f"{line.plain_ms / line.ours_ms:.1f}x",
            f"{rate / 1e9:,.0f}" if rate else "", f"{rate / copy:.0%}" if rate else "",
            f"{sizes.tokens / line.ours_ms * 1e3:,.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
