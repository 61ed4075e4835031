"""One stage without Prefect: what `python -m stages NAME ...` runs."""

import time
from collections.abc import Mapping, Sequence

from artifacts import ArtifactId, Store
from pipeline.running.progress import print_results, say_before, shown
from pipeline.stage import Made, StageConfig, chosen_device, run_stage
from stages.chain import Step
from stages.command import read_stage
from stages.execution import make_one


def run(arguments: Sequence[str]) -> int:
    start = time.monotonic()
    command = read_stage(arguments, prog="python -m stages")
    store = Store(command.store)
    say_before(command.said, command.device)

    def make(step: Step, config: StageConfig, inputs: Mapping[str, ArtifactId], force: bool) -> Made:
        with shown(step.name) as report:
            return run_stage(
                step.stage,
                config,
                inputs=inputs,
                store=store,
                seed=command.seed,
                device=chosen_device(command.device),
                force=force,
                report=report,
            )

    print_results(list(make_one(command, make)), store, time.monotonic() - start)
    return 0
