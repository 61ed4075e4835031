"""How many experts a second one thread fits: splines, the snap, and the pursuit before them.

    python -m tests.benchmarks.symbolic

Planted experts: relu2 of a sparse u and a little of everything else, on states of width 128. Times are CPU seconds of
this process, the least of several repeats. Exits with 1 where spline and snap together miss the goal.
"""

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.symbolic.formulas.fitting import EXPERTS_A_PIECE
from pipeline.symbolic.formulas.spline import fit_splines, snap
from pipeline.transforms.pursuit import matching_pursuit
from tests.benchmarks.kernels import Op, normal, take_turns
from tests.catalogue import BY_NAME

GOAL = 1000
"""Experts a second and core, spline and snap."""
D, LADDER = 128, (1, 2, 4, 8, 16)
SAMPLES = (256, 800)


def main() -> None:
    torch.set_num_threads(1)
    table = Table("samples", "spline, ms", "snap, ms", "pursuit, ms", "spline + snap, experts/s", "all, experts/s",
                  box=box.SIMPLE_HEAD)  # fmt: skip
    slowest = float("inf")
    for samples in SAMPLES:
        seconds = take_turns(_ops(samples))
        both = EXPERTS_A_PIECE / (seconds["spline"] + seconds["snap"])
        # The stage fits a spline and snaps for each size of the ladder.
        whole = EXPERTS_A_PIECE / (len(LADDER) * (seconds["spline"] + seconds["snap"]) + seconds["pursuit"])
        times = (f"{seconds[name] * 1e3:.1f}" for name in ("spline", "snap", "pursuit"))
        table.add_row(str(samples), *times, f"{both:,.0f}", f"{whole:,.0f}")
        slowest = min(slowest, both)
    console = Console(width=120)
    console.print(f"torch {torch.__version__}, one thread, {EXPERTS_A_PIECE} experts at once, sizes {LADDER}")
    console.print(table)
    if slowest < GOAL:
        raise SystemExit(f"spline and snap fit {slowest:,.0f} experts a second, wanted {GOAL:,}; profile them")


def _ops(samples: int) -> dict[str, Op]:
    x_ESD, known = normal(EXPERTS_A_PIECE, samples, D), BY_NAME["relu2"]
    u_ED, bias_E = normal(EXPERTS_A_PIECE, D, seed=1).pow(3) / 10, normal(EXPERTS_A_PIECE, seed=2)
    z_ES = torch.einsum("esd,ed->es", x_ESD, u_ED) + bias_E[:, None]
    y_ES, weight_ES = known.f(z_ES + 0.1 * normal(EXPERTS_A_PIECE, samples, seed=3)), normal(*z_ES.shape, seed=4) ** 2
    return {
        "spline": lambda: fit_splines(z_ES, y_ES, weight_ES),
        "snap": lambda: snap(z_ES, y_ES, weight_ES, known.code),
        "pursuit": lambda: matching_pursuit(x_ESD, weight_ES, u_ED, bias_E, LADDER),
    }


if __name__ == "__main__":
    main()
