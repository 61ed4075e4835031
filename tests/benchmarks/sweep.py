"""One field of a stage's config at several values: what presets are set by. `python -m tests.benchmarks.sweep --help`

    python -m tests.benchmarks.sweep train-monet training.learning_rate 2e-3 3e-3 4e-3 --seeds 10 11 --store DIR

makes an artifact for each value and seed (what the store has is reused) and prints losses on the validation split, by
which a value is chosen: take seeds that no table reports. One thread a process; start one for each core.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from artifacts import ArtifactId, Store
from pipeline.stage import StageConfig, run_stage
from stages.chain import Step, step_of
from stages.plan import Plan, plain
from stages.presets import preset_of

CONSOLE = Console(width=200, soft_wrap=True)
METRIC = "validation_loss_nats"


def with_field(config: StageConfig, path: str, value: str) -> StageConfig:
    """The config with the field at this dotted path set; pydantic reads the text."""
    values: dict[str, Any] = plain(config)
    *outer, last = path.split(".")
    inner: Mapping[str, Any] = values
    for name in outer:
        inner = inner[name]
    if last not in inner:
        raise ValueError(f"the config has no field {path!r}; there are {', '.join(inner)}")
    inner[last] = value  # type: ignore[index]
    return type(config).model_validate(values)


def made(step: Step, plan: Plan, store: Store, seed: int) -> ArtifactId:
    """What the preset's chain makes up to this step; the corpus with seed 0, which it does not depend on."""
    inputs = {role: made(step_of(below), plan, store, seed) for role, below in step.inputs.items()}
    seed = seed if inputs else 0
    return run_stage(step.stage, plan.config_of(step), inputs=inputs, store=store, seed=seed).id


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweep")
    parser.add_argument("stage")
    parser.add_argument("field", help="dotted, such as training.learning_rate")
    parser.add_argument("values", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("FIELD", "VALUE"), help="for all")
    parser.add_argument("--store", type=Path, required=True)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    store, plan, step = Store(options.store), preset_of(options.preset), step_of(options.stage)
    base = plan.config_of(step)
    for path, value in options.set:
        base = with_field(base, path, value)
    CONSOLE.print(f"| {options.field} | {METRIC} | by seed |\n| ---: | ---: | --- |")
    for value in options.values:
        losses = []
        for seed in options.seeds:
            inputs = {role: made(step_of(below), plan, store, seed) for role, below in step.inputs.items()}
            config = with_field(base, options.field, value)
            id = run_stage(step.stage, config, inputs=inputs, store=store, seed=seed).id
            losses.append(store.open(id).manifest.metrics[METRIC])
        by_seed = ", ".join(f"{loss:.4f}" for loss in losses)
        CONSOLE.print(f"| {value} | {statistics.fmean(losses):.4f} | {by_seed} |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
