"""Whether what `show --json` prints of an expert is enough to be it.

    python -m tests.benchmarks.readers_test --store DIR

Experts are drawn at random over all blocks and all tiers that fire. What the command prints of each is evaluated by
this file alone, from the printed words, in numpy: nothing of the project computes with it. Its firing is held against
the pairs that the model reaches, its magnitude and what it adds to the stream against the layer as it runs, with the
expert and without. States come from a plain hook. Exits with 1 where a goal is missed.
"""

# N tokens, D model width, E experts, P pairs (a token and an expert), I rows or columns of a head, L literals

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from artifacts import Store
from pipeline.corpus.windows import held_out_windows
from pipeline.models import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.opening import Opened, open_model
from pipeline.symbolic.tiers import Tier

LEAST_F1 = 0.999
MOST_ERROR = 0.01
"""Of the peak of what it is an error of."""
Numbers = NDArray[np.float64]
Printed = Mapping[str, Any]
"""Of the JSON that the command prints, an object."""


# What a reader makes of the printed words.


def gates_of(fires: Printed, states: Sequence[Numbers], window_WT: NDArray[np.int64]) -> Numbers:
    """(N) the gate on each token; 0 where it does not fire."""
    if fires["by"] == "logic":
        return _by_logic(fires, window_WT).astype(np.float64)
    x_ND = states[fires["reads"]["block"]]
    read_NF = x_ND @ np.array(fires["features"]).T if fires["scores_of"] == "features" else x_ND
    return np.sum([_by_head(fires, head, read_NF) for head in fires["heads"]], axis=0)


def _by_head(fires: Printed, head: Printed, read_NF: Numbers) -> Numbers:
    a_NI, b_NI = (_scores(head[axis]["scores"], read_NF) for axis in ("rows", "columns"))
    row, column = fires["row"], fires["column"]
    if fires["gate"] == "softmax":
        sum_NP = (a_NI[:, :, None] + b_NI[:, None, :]).reshape(len(read_NF), -1)
        best_NP = -np.sort(-sum_NP, axis=1)[:, : fires["pairs_per_head"]]
        own_N = a_NI[:, row] + b_NI[:, column]
        weight_N = np.exp(own_N - best_NP[:, 0]) / np.exp(best_NP - best_NP[:, :1]).sum(1)
        return np.where(own_N >= best_NP[:, -1], weight_N, 0.0)
    sum_N = _log_gate(a_NI, row, head["rows"]["cut"]) + _log_gate(b_NI, column, head["columns"]["cut"])
    threshold = -math.inf if head["threshold"] is None else head["threshold"]
    return np.where(sum_N > threshold, np.exp(sum_N), 0.0)


def _scores(sums: Sequence[Printed], read_NF: Numbers) -> Numbers:
    weight_IF = np.zeros((len(sums), read_NF.shape[1]))
    for row, score in enumerate(sums):
        for number, coefficient in score["terms"]:
            weight_IF[row, number] = coefficient
    return read_NF @ weight_IF.T + np.array([score["intercept"] for score in sums])


def _log_gate(score_NI: Numbers, own: int, cut: Printed) -> Numbers:
    least_N = np.minimum(cut["limit"], score_NI.max(1) - cut["margin"])
    passing_NI = np.where(score_NI >= least_N[:, None], score_NI, -math.inf)
    return passing_NI[:, own] - np.logaddexp.reduce(passing_NI, axis=1)


def _by_logic(fires: Printed, window_WT: NDArray[np.int64]) -> NDArray[np.bool_]:
    wires = []
    for literal in fires["literals"]:
        true_WT = np.zeros(window_WT.shape, dtype=bool)
        back = literal["back"]
        true_WT[:, back:] = np.isin(window_WT[:, : window_WT.shape[1] - back], literal["tokens"])
        wires.append(true_WT)
    for gate in fires["gates"]:
        wires.append(np.array(gate["truth"])[2 * wires[gate["a"]].astype(int) + wires[gate["b"]]])
    return wires[-1].ravel()


def magnitudes_of(magnitude: Printed, states: Sequence[Numbers]) -> Numbers:
    """(N) scale * f(z) + offset."""
    x_ND = states[magnitude["reads"]["block"]]
    z_N = np.full(len(x_ND), magnitude["intercept"])
    for number, coefficient in magnitude["terms"]:
        z_N = z_N + coefficient * x_ND[:, number]
    function = magnitude["function"]
    f_N = _spline(function, z_N) if function["kind"] == "spline" else _formula(function["formula"], z_N)
    return magnitude["scale"] * f_N + magnitude["offset"]


def _formula(formula: str, z_N: Numbers) -> Numbers:
    words: dict[str, Any] = {
        "z": z_N, "Max": np.maximum, "Min": np.minimum, "Abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
        "sign": np.sign, "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "atan": np.arctan,
        "erf": np.vectorize(math.erf),
    }  # fmt: skip
    return eval(formula, {"__builtins__": {}}, words) + np.zeros_like(z_N)  # our own model's, on our own machine


def _spline(function: Printed, z_N: Numbers) -> Numbers:
    c = np.array(function["coefficients"])
    p_N = np.clip((z_N - function["low"]) / (function["high"] - function["low"]), 0, 1) * (len(c) - 3)
    i_N = np.minimum(np.floor(p_N).astype(int), len(c) - 4)
    t = p_N - i_N
    basis = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    return np.sum([c[i_N + shift] * part for shift, part in enumerate(basis)], axis=0) / 6


# What the model does.


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One expert: how far its reader is from the model."""

    layer: int
    expert: int
    tier: str
    firings: int
    f1: float
    gate_error: float
    magnitude_error: float
    written_error: float
    """Of what the layer's output lacks without the expert."""

    @property
    def is_read(self) -> bool:
        return self.f1 >= LEAST_F1 and max(self.gate_error, self.magnitude_error, self.written_error) <= MOST_ERROR


class Watched:
    """A symbols model on held-out tokens: what its expert layers read, kept by hooks."""

    def __init__(self, opened: Opened, num_tokens: int) -> None:
        self.model: LanguageModel = opened.model
        split = opened.corpus.held_out
        self.token_WT, _ = held_out_windows(split, num_tokens=num_tokens, length=opened.context)
        self.layers = self.model.expert_layers_of(SymbolExperts)
        states: dict[int, Tensor] = {}
        self.calls: dict[int, tuple[Any, ...]] = {}
        hooks = []
        for number, block in enumerate(self.model.blocks()):

            def keep_state(_module: object, _read: object, out: Tensor, number: int = number) -> None:
                states[number] = out.flatten(0, -2)

            def keep_call(_module: object, read: tuple[Any, ...], number: int = number) -> None:
                self.calls[number] = read

            hooks += [
                block.post_attention_layernorm.register_forward_hook(keep_state),
                block.moe.register_forward_pre_hook(keep_call),
            ]
        with torch.no_grad():
            self.model(self.token_WT)
        for hook in hooks:
            hook.remove()
        self.states = [states[number].double().numpy() for number in range(len(states))]

    def drawn(self, count: int, seed: int) -> list[tuple[int, int]]:
        """(layer, expert): in turn of every block and tier that fires, each of those anew as often as it takes."""
        generator = np.random.default_rng(seed)
        kinds = []
        for layer, experts in enumerate(self.layers):
            for tier in (tier for tier in Tier if tier != Tier.T4):
                found = torch.nonzero(experts.tier_E == tier)[:, 0].tolist()
                if found:
                    kinds.append([(layer, expert) for expert in generator.permutation(found).tolist()])
        turns = [one for turn in range(count) for kind in kinds if turn < len(kind) for one in [kind[turn]]]
        return sorted(turns[:count])

    @torch.no_grad()
    def compare(self, printed: Printed) -> Row:
        """A reader's firing, gate, magnitude and direction beside the model's."""
        layer, expert = printed["layer"], printed["expert"]
        experts = self.layers[layer]
        gate_N = gates_of(printed["fires"], self.states, self.token_WT.numpy())
        magnitude_N = magnitudes_of(printed["magnitude"], self.states)
        v_D = np.array(printed["writes"]["v"])

        pairs = experts.pairs(*self.calls[layer])
        own_P = pairs.expert_P == expert
        token_P = pairs.token_P[own_P].numpy()
        wanted_gate_N = np.zeros_like(gate_N)
        wanted_gate_N[token_P] = pairs.gate_P[own_P].double().numpy()
        wanted_P = pairs.norm_P[own_P].double().numpy() / (np.linalg.norm(v_D) * wanted_gate_N[token_P])

        with_it_ND = experts(*self.calls[layer]).double()
        tier = int(experts.tier_E[expert])
        experts.tier_E[expert] = Tier.T4
        without_ND = experts(*self.calls[layer]).double()
        experts.tier_E[expert] = tier
        added_ND = (with_it_ND - without_ND).numpy()
        return Row(
            layer=layer,
            expert=expert,
            tier=printed["tier"],
            firings=len(token_P),
            f1=_f1(gate_N > 0, wanted_gate_N > 0),
            gate_error=_of_peak(gate_N, wanted_gate_N),
            magnitude_error=_of_peak(np.abs(magnitude_N[token_P]), wanted_P),
            written_error=_of_peak((gate_N * magnitude_N)[:, None] * v_D, added_ND),
        )


def _f1(found_N: NDArray[np.bool_], wanted_N: NDArray[np.bool_]) -> float:
    """Of firing; one that never fires, neither here nor there, is read right."""
    both = 2 * int((found_N & wanted_N).sum())
    return both / total if (total := int(found_N.sum()) + int(wanted_N.sum())) else 1.0


def _of_peak(found: Numbers, wanted: Numbers) -> float:
    peak = np.abs(wanted).max(initial=0.0)
    worst = np.abs(found - wanted).max(initial=0.0)
    return float(worst / peak) if peak else float(worst)


def printed_by(store: Path, id: str, layer: int, expert: int) -> Printed:
    """What the command prints, in a process of its own."""
    words = ["show", id, "--layer", str(layer), "--expert", str(expert), "--json", "--store", str(store)]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.symbolic", *words], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.readers_test")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of the store")
    parser.add_argument("--model", default="latest", metavar="ID", help="the symbols to read (default: latest)")
    parser.add_argument("--experts", type=int, default=20, help="how many are drawn (default: 20)")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens, about (default: 8192)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    args = parser.parse_args(arguments)
    opened = open_model(Store(args.store), args.model, "symbols")
    watched = Watched(opened, args.tokens)
    drawn = watched.drawn(args.experts, args.seed)
    rows = [watched.compare(printed_by(args.store, opened.id, *one)) for one in drawn]
    table = Table("layer", "expert", "tier", "firings", "F1", "gate", "magnitude", "written", box=box.SIMPLE_HEAD)
    for row in rows:
        errors = (f"{error:.1e}" for error in (row.gate_error, row.magnitude_error, row.written_error))
        table.add_row(f"{row.layer}", f"{row.expert}", row.tier, f"{row.firings}", f"{row.f1:.4f}", *errors)
    console = Console(width=100)
    console.print(f"{opened.id}, {watched.token_WT.numel():,} held-out tokens; errors are shares of the peak")
    console.print(table)
    missed = sum(not row.is_read for row in rows)
    if missed:
        raise SystemExit(f"{missed} of {len(rows)} experts miss F1 {LEAST_F1} or {MOST_ERROR:.0%} of the peak")


if __name__ == "__main__":
    main()
