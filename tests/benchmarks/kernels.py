"""`make bench`: kernels against their references in one process, on one thread. No ratio without agreement.

N experts, d width, k experts a token, T tokens; the reference gathers every row.
"""

import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from kernels.expert_sum import expert_sum
from kernels.expert_sum import reference as expert_reference
from kernels.monet_mix import monet_mix
from kernels.monet_mix import reference as mix_reference
from kernels.product_key_topk import product_key_topk
from kernels.product_key_topk import reference as key_reference

Op = Callable[[], torch.Tensor]


def seconds(op: Op, repeats: int = 5) -> float:
    """The least of a few runs, in CPU time of this process."""
    op()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        op()
        times.append(time.process_time() - start)
    return min(times)


def expert_pair(num_experts: int, width: int, per_token: int, tokens: int) -> tuple[Op, Op]:
    g = torch.Generator().manual_seed(0)
    u, v = (torch.randn(num_experts, width, generator=g) * width**-0.5 for _ in range(2))
    x, bias = torch.randn(tokens, width, generator=g), torch.zeros(num_experts)
    expert = torch.randint(num_experts, (tokens * per_token,), generator=g)
    gate = torch.rand(tokens * per_token, generator=g)
    start = torch.arange(tokens + 1) * per_token
    args = (x, u, bias, v, expert, start, gate, "gelu")
    return lambda: expert_sum(*args), lambda: expert_reference.expert_sum(*args)


def key_pair(tokens: int, heads: int, keys: int, k: int) -> tuple[Op, Op]:
    g = torch.Generator().manual_seed(0)
    row, column = (torch.randn(tokens, heads, keys, generator=g) for _ in range(2))
    return lambda: product_key_topk(row, column, k)[0], lambda: key_reference.product_key_topk(row, column, k)[0]


def mix_pair(tokens: int, heads: int, sub_experts: int, hidden: int) -> tuple[Op, Op]:
    g = torch.Generator().manual_seed(0)
    units = torch.randn(tokens, sub_experts, hidden, generator=g)
    one, two = (torch.rand(tokens, heads, sub_experts, generator=g) for _ in range(2))
    return lambda: monet_mix(units, one, two), lambda: mix_reference.monet_mix(units, one, two)


def main() -> None:
    torch.set_num_threads(1)
    rows: dict[str, tuple[Op, Op]] = {
        "expert_sum fp32, N=65,536 d=256 k=64 T=256": expert_pair(65_536, 256, 64, 256),
        "expert_sum fp32, N=262,144 d=512 k=128 T=128": expert_pair(262_144, 512, 128, 128),
        "product_key_topk, 8 heads 128 keys k=16 T=64": key_pair(64, 8, 128, 16),
        "monet_mix, 4 heads n=128 m=16 T=128": mix_pair(128, 4, 128, 16),
    }
    table = Table("op", "reference, ms", "op, ms", "ratio")
    for name, (op, reference) in rows.items():
        torch.testing.assert_close(op(), reference(), rtol=1e-3, atol=1e-4)
        slow, fast = seconds(reference), seconds(op)
        table.add_row(name, f"{slow * 1e3:.1f}", f"{fast * 1e3:.1f}", f"{slow / fast:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
