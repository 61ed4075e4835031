"""Trials of a study: small trainings that differ in one thing, side by side.

Each runs in a process of its own with one thread: models this small gain little from a second one, and what a trial
gives does not depend on how many cores there are.
"""

import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from pipeline.parent import end_with
from pipeline.run import Progress, Run, current_run, running
from pipeline.training.sealed_file import load_sealed, save_sealed, unusable


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training: its name among the others, its seed, and what computes its numbers."""

    name: str
    seed: int
    compute: Callable[..., Mapping[str, float]]
    """A function of a module, called with `arguments`; both are pickled."""
    arguments: tuple[Any, ...]

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9.]+", "-", f"{self.name} seed {self.seed}".lower()) + ".trial"


def run_trials(trials: Sequence[Trial], what: str) -> list[dict[str, float]]:
    """The numbers of each trial, in their order. A study that is killed remembers the trials that have ended."""
    run = current_run()
    numbers: dict[int, dict[str, float]] = {}
    paths = [run.checkpoints / trial.file_name if run.checkpoints else None for trial in trials]
    for place, path in enumerate(paths):
        if path is not None and path.exists():
            numbers[place] = _remembered(path)
    left = [place for place in range(len(trials)) if place not in numbers]
    start = time.monotonic()
    # A GPU is not shared: its trials run one after the other.
    workers = max(1, min(len(left), (os.cpu_count() or 1) if run.device.type == "cpu" else 1))
    context = get_context("spawn")
    # A worker whose study was killed would wait for trials for ever.
    ends = os.getpid(), partial(os._exit, 1)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with, initargs=ends) as pool:
        failed: BaseException | None = None
        under_way: dict[Future[dict[str, float]], int] = {}
        while left or under_way:
            while left and len(under_way) < workers:  # no more, as each holds a copy of its arguments
                place = left.pop(0)
                under_way[pool.submit(_run, _pickled(trials[place]), str(run.device))] = place
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                place = under_way.pop(future)
                if (error := future.exception()) is not None:
                    failed, left = failed or error, []  # those under way end, and are remembered
                    continue
                numbers[place] = future.result()
                _remember(numbers[place], paths[place])
                seconds = time.monotonic() - start
                run.report(Progress(what=what, step=len(numbers), total=len(trials), seconds=seconds))
        if failed is not None:
            raise failed
    return [numbers[place] for place in range(len(trials))]


def _pickled(trial: Trial) -> bytes:
    """By torch, whose pickle knows every dtype of a tensor."""
    file = io.BytesIO()
    torch.save(trial, file)
    return file.getvalue()


def _run(payload: bytes, device: str) -> dict[str, float]:
    """A trial, in a worker. No checkpoints of its own: what an arm keeps beside its model would not be in them."""
    torch.set_num_threads(1)
    trial: Trial = torch.load(io.BytesIO(payload), weights_only=False)
    with running(Run(seed=trial.seed, device=torch.device(device))):
        return dict(trial.compute(*trial.arguments))


def _remember(numbers: dict[str, float], path: Path | None) -> None:
    if path is not None:
        save_sealed({"numbers": numbers}, path)


def _remembered(path: Path) -> dict[str, float]:
    state = load_sealed(path)
    numbers = state.get("numbers")
    if state.keys() != {"numbers"} or not isinstance(numbers, dict) or not all(map(_is_number, numbers.items())):
        raise unusable(path, "is of another form: it holds no numbers of a trial by name")
    return numbers


def _is_number(named: tuple[object, object]) -> bool:
    return isinstance(named[0], str) and isinstance(named[1], int | float)
