"""LogicLayer beside the sum over sixteen gates, and beside difflogic where that is installed: how alike, how fast.

python -m tests.benchmarks.logic_layer
"""

# B samples, I inputs, O gates

from collections.abc import Callable

import torch
from rich.console import Console

from pipeline.symbolic.rules._difflogic import as_difflogic, layer_class, run
from pipeline.symbolic.rules.logic_layer import LogicLayer
from tests.benchmarks.kernels import Op, take_turns

B, I, O = 256, 512, 1024
CONSOLE = Console(width=120)
Found = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Outputs, gradients of inputs, gradients of weights."""


def sixteen_terms(layer: LogicLayer, x: torch.Tensor) -> torch.Tensor:
    a, b = x[:, layer.indices[0]], x[:, layer.indices[1]]
    both, share = a * b, torch.softmax(layer.weights, dim=-1)
    terms = (
        torch.zeros_like(a), both, a - both, a, b - both, b, a + b - 2 * both, a + b - both,
        1 - (a + b - both), 1 - (a + b - 2 * both), 1 - b, 1 - b + both, 1 - a, 1 - a + both, 1 - both,
        torch.ones_like(a),
    )  # fmt: skip
    return sum((share[:, kind] * term for kind, term in enumerate(terms)), torch.zeros_like(a))


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = LogicLayer(I, *torch.randint(I, (2, O), generator=generator), generator=generator)
    x_BI, weight_BO = torch.rand(B, I, generator=generator), torch.randn(B, O, generator=generator)

    def step(forward: Callable[[torch.Tensor], torch.Tensor], weights: torch.nn.Parameter) -> Found:
        x = x_BI.clone().requires_grad_()
        y_BO = forward(x)
        return y_BO.detach(), *torch.autograd.grad((y_BO * weight_BO).sum(), (x, weights))

    steps: dict[str, Callable[[], Found]] = {
        "LogicLayer": lambda: step(ours, ours.weights),
        "sixteen terms": lambda: step(lambda x: sixteen_terms(ours, x), ours.weights),
    }
    if layer_class() is not None:
        theirs = as_difflogic(ours)
        steps["difflogic"] = lambda: step(lambda x: run(theirs, x), theirs.weights)
    wanted = steps["LogicLayer"]()
    ops: dict[str, Op] = dict(steps)
    seconds = take_turns(ops, repeats=25)
    CONSOLE.print(f"{B} samples, {I} inputs, {O} gates, forward and backward, {torch.get_num_threads()} thread(s)")
    for name, of in steps.items():
        differ = [f"{float((a - b).abs().max()):.1e}" for a, b in zip(of(), wanted, strict=True)]
        CONSOLE.print(f"{name:>14}  {1e3 * seconds[name]:6.1f} ms CPU; differs at most by {', '.join(differ)}")


if __name__ == "__main__":
    main()
